"""The first wrong step by rule, without a model.

The bare calculations, one a step, of a question that is an arithmetic expression are compared with
its solution from the left, step by step: a true calculation in another order is called wrong
(`prefkit.pairs.localise.expression.orders` allows any order). Otherwise a step is wrong if

1. a calculation in it is false (certain),
2. it calculates with a number that nobody gave (likely), or
3. a right solution is known and its result is not on the way of that (likely).

Where no step is wrong by these rules and the answer is, the solution stops short of the answer or
means something else by its last result: then its last step is blamed (a guess).
"""

from collections.abc import Sequence
from fractions import Fraction

from prefkit.pairs.grading.find.answers import final_answer
from prefkit.pairs.grading.rationals import Number, Product, leaves, value_of
from prefkit.pairs.localise.arithmetic.calculations import (
    Calculation,
    false_calculation,
    is_cut_off,
    values,
)
from prefkit.pairs.localise.expression.question import (
    first_wrong,
    is_expression,
    is_plain,
    solution_of,
    terms_of,
)
from prefkit.pairs.localise.program.origins import known, stated
from prefkit.pairs.localise.program.reference import Reachable, contains, told
from prefkit.pairs.localise.program.terms import MAX_TERMS, Made, made_of, polynomial, readings
from prefkit.pairs.localise.verdict import Verdict

_HUNDREDS = frozenset(map(Fraction, ("1", "100", "1/100")))
_UNITS = frozenset(map(Fraction, (7, 12, 24, 60, 1000, 3600)))


def locate(question: str, steps: Sequence[str], *, solution: str | None = None) -> Verdict:
    """The first wrong step of a solution, by the rules above.

    Args:
        question: its text.
        steps: of the solution to be searched, as `split_steps` gives them.
        solution: a right solution to the question; without it only rules 1 and 2 apply.

    Returns:
        The 0-based step. For an expression it can be the index after the last step: a step is
        missing. None: nothing wrong was found, which does not mean that all is right.
    """
    if is_expression(question) and is_plain(steps):
        return first_wrong(question, steps)
    if solution is None:
        solution = solution_of(question)
    search = _Search(question, steps, solution)
    for index in range(len(steps)):
        reason = search.wrong(index)
        if reason:
            return Verdict(index, reason)
    return search.stops_short()


class _Search:
    def __init__(self, question: str, steps: Sequence[str], solution: str | None) -> None:
        self.steps = steps
        self.answer = value_of(_bare(final_answer(solution) or "")) if solution else None
        self.stated = value_of(_bare(final_answer("".join(steps)) or ""))
        # A wrong answer makes it likely that an unusual path is a mistake.
        wide = self.answer is None or self.stated is None or contains([self.answer], self.stated)
        # A sum may be taken in any order; where it is too long for that to be followed, only the
        # rules that need no right solution speak.
        numbers = terms_of(question)
        self.reachable = None
        if solution and numbers <= MAX_TERMS:
            self.reachable = Reachable(question, solution, wide or numbers > 0)
        self.stated_numbers = stated(question)
        self.made: Made = {}
        context = " ".join([question, solution or ""])
        self.facts = known(context)
        self.sources = set(self.stated_numbers | self.facts | stated(solution or ""))
        self.told = [told(step) for step in steps]

    def wrong(self, index: int) -> str | None:
        """Why a step is wrong, or None; steps before it must have been asked about."""
        step = self.steps[index]
        false = false_calculation(step)
        if false is not None:
            if index == len(self.steps) - 1 and is_cut_off(step, false):
                return f"false arithmetic, or cut off: {false.text} (likely)"
            return f"false arithmetic: {false.text} (certain)"
        for calculation in self.told[index]:
            reason = self._off_the_way(calculation)
            if reason:
                return reason
            self._remember(calculation)
            self.sources |= set(values(calculation.left)) if calculation.left else set()
            self.sources.add(calculation.result.value)
        return None

    def _off_the_way(self, calculation: Calculation) -> str | None:
        strange = self._strange(calculation)
        if strange is not None:
            return f"{_written(strange)} comes from nowhere in {calculation.text} (likely)"
        if self.reachable is None or self._is_conversion(calculation):
            return None
        if not self._is_reachable(calculation):
            return f"{calculation.text} is not on the way to the right answer (likely)"
        return None

    def _is_reachable(self, calculation: Calculation) -> bool:
        assert self.reachable is not None
        if calculation.left is None:
            return self.reachable.has(calculation.result.value)
        made = readings(calculation.left, self.made, self.stated_numbers)
        sums = [polynomial(calculation.left, put_in, True) for put_in in made]
        return any(
            self.reachable.has(value, made_of(found))
            for value in values(calculation.left)
            for found in sums
            if found is not None
        )

    def _remember(self, calculation: Calculation) -> None:
        if calculation.left is None:
            return
        made = readings(calculation.left, self.made, self.stated_numbers)[1]
        found = polynomial(calculation.left, made, True)
        if found is not None:
            self.made.setdefault(calculation.result.value, found)

    def _strange(self, calculation: Calculation) -> Fraction | None:
        """The first operand that is no number of the question, no earlier result and no fact."""
        if calculation.left is None:
            return None
        sources = sorted(self.sources)
        for leaf in leaves(calculation.left):
            forms = {leaf.value, leaf.value / 100 if leaf.percent else leaf.value}
            forms |= {leaf.value * 100, 1 - leaf.value, 100 - leaf.value, leaf.value / 100}
            known_here = any(contains(sources, abs(form)) for form in forms)
            if not known_here and not (self.reachable and self.reachable.has(leaf.value)):
                return leaf.value
        return None

    def _is_conversion(self, calculation: Calculation) -> bool:
        """6 * 1 = 6, 50/100 = 0.5, 4 * 60 minutes: one number, written in another way."""
        if calculation.left is None or not isinstance(calculation.left, Product | Number):
            return False
        operands = [leaf.value for leaf in leaves(calculation.left)]
        units = (self.facts & _UNITS) - self.stated_numbers - set(self.made)
        others = [x for x in operands if x not in units | _HUNDREDS]
        return len(others) <= 1 and len(operands) <= 2

    def stops_short(self) -> Verdict:
        """Every step is in order: what of the answer?"""
        if self.answer is None or self.reachable is None:
            return Verdict(None, "no rule finds a wrong step")
        if self.stated is None or contains([self.answer], self.stated):
            return Verdict(None, "no rule finds a wrong step")
        last = next((i for i in reversed(range(len(self.steps))) if self.told[i]), None)
        if last is None or not any(
            contains([calculation.result.value], self.stated) for calculation in self.told[last]
        ):
            return Verdict(len(self.steps) - 1, "its answer is none of its results (a guess)")
        return Verdict(last, "its result is taken for the answer and is not (a guess)")


def _bare(answer: str) -> str:
    """An answer without currency and what follows the number."""
    return answer.replace("$", "").replace(",", "").partition(" ")[0].rstrip("%.")


def _written(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"
