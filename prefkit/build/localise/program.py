"""The first wrong step by rule, without a model.

A question that is an arithmetic expression has one right solution, and every step is compared
with it. For any other question a step is wrong if

1. a calculation in it is false (certain),
2. it calculates with a number that nobody gave (likely), or
3. a right solution is known and its result is not on the way of that (likely).

Where no step is wrong by these rules and the answer is, the solution stops short of the answer or
means something else by its last result: then its last step is blamed (a guess).
"""

from collections.abc import Sequence
from fractions import Fraction

from prefkit.build.answers import final_answer
from prefkit.build.localise import expression
from prefkit.build.localise.calculations import Calculation, calculations
from prefkit.build.localise.equations import false_calculation, values
from prefkit.build.localise.origins import known, stated
from prefkit.build.localise.reference import Reachable, contains
from prefkit.build.localise.verdict import Verdict
from prefkit.build.rationals import leaves, value_of


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
    if expression.is_expression(question):
        return expression.first_wrong(question, steps)
    search = _Search(question, steps, solution)
    for place in range(len(steps)):
        reason = search.wrong(place)
        if reason:
            return Verdict(place, reason)
    return search.stops_short()


class _Search:
    def __init__(self, question: str, steps: Sequence[str], solution: str | None) -> None:
        self.steps = steps
        self.reachable = Reachable(question, solution) if solution else None
        self.answer = value_of(_bare(final_answer(solution) or "")) if solution else None
        self.given = stated(question)
        context = " ".join([question, solution or ""])
        self.sources = set(self.given | known(context) | stated(solution or ""))
        self.told = [_told(step) for step in steps]

    def wrong(self, place: int) -> str | None:
        """Why a step is wrong, or None; steps before it must have been asked about."""
        step = self.steps[place]
        false = false_calculation(step)
        if false is not None:
            return f"false arithmetic: {false.text} (certain)"
        told = self.told[place]
        for calculation in told:
            reason = self._off_the_way(calculation)
            if reason:
                return reason
        for calculation in told:
            self.sources |= set(values(calculation.left)) if calculation.left else set()
            self.sources.add(calculation.result.value)
        return None

    def _off_the_way(self, calculation: Calculation) -> str | None:
        strange = self._strange(calculation)
        if strange is not None:
            return f"{_written(strange)} comes from nowhere in {calculation.text} (likely)"
        if self.reachable is None or _is_trivial(calculation):
            return None
        results = values(calculation.left) if calculation.left else [calculation.result.value]
        if not any(self.reachable.has(value) for value in results):
            return f"{calculation.text} is not on the way to the right answer (likely)"
        return None

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

    def stops_short(self) -> Verdict:
        """Every step is in order: what of the answer?"""
        if self.answer is None or self.reachable is None:
            return Verdict(None, "no rule finds a wrong step")
        stated_answer = value_of(_bare(final_answer("".join(self.steps)) or ""))
        if stated_answer is None or contains([self.answer], stated_answer):
            return Verdict(None, "no rule finds a wrong step")
        last = next((i for i in reversed(range(len(self.steps))) if self.told[i]), None)
        if last is None or not any(
            contains([calculation.result.value], stated_answer) for calculation in self.told[last]
        ):
            return Verdict(len(self.steps) - 1, "its answer is none of its results (a guess)")
        return Verdict(last, "its result is taken for the answer and is not (a guess)")


def _told(step: str) -> list[Calculation]:
    """What a step calculates, by its marks where it has any."""
    found = calculations(step)
    return [calculation for calculation in found if calculation.marked] or found


def _is_trivial(calculation: Calculation) -> bool:
    """6 * 1 = 6, 50/100 = 0.5: another way of writing a number."""
    if calculation.left is None:
        return False
    operands = [leaf.value for leaf in leaves(calculation.left)]
    return len([x for x in operands if x not in (0, 1, 100, Fraction(1, 100))]) <= 1


def _bare(answer: str) -> str:
    """An answer without currency and what follows the number."""
    return answer.replace("$", "").replace(",", "").partition(" ")[0].rstrip("%.")


def _written(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"
