"""The steps of an expression, in whatever order they are taken: right, wrong, or not to be told.

A step ("3+2=5") is right if it is a true calculation of terms or factors that are still open, in
any order, several of them at once. It is wrong if its arithmetic is false, or if it is true and
nothing explains it: it takes numbers that are not open, or 12+4 out of 12+4*3. Where something
could explain it, the solution is left to others: brackets that may be opened, a shared factor, a
sign turned round (9-8 of 8-9), a calculation done in the mind, a number split up (47+3 of 47+8), a
product taken otherwise (100*7 of 99*7, 6*2 of 6+6), zeros left out (3+4 of 300+400).
"""

import itertools
from collections.abc import Sequence
from fractions import Fraction

from prefkit.pairs.grading.find.answers import final_answer
from prefkit.pairs.grading.rationals import Node, Unreadable, leaves, parse, tokens_of, value_of
from prefkit.pairs.localise.arithmetic.calculations import false_calculation, is_cut_off
from prefkit.pairs.localise.expression.forms import (
    Form,
    can_be_regrouped,
    form_of,
    has_product,
    moves,
    numbers,
    selections,
    value,
)
from prefkit.pairs.localise.expression.question import closing, is_plain, tree_of
from prefkit.pairs.localise.verdict import Verdict

MAX_STATES = 64  # readings of the steps so far


def decided(question: str, steps: Sequence[str]) -> Verdict | None:
    """The first wrong step of a solution, where it can be told.

    Args:
        question: an expression with or without "=" at its end.
        steps: bare calculations, one a step; a line that states the answer may follow.

    Returns:
        Its 0-based step; the index after the last one where terms are left open; step None where
        every step is right. None: the question is no expression, a step is no bare calculation, or
        there is more than one reading.
    """
    tree = tree_of(question)
    if tree is None or not is_plain(steps):
        return None
    try:
        return _Following(form_of(tree), steps).verdict()
    except Unreadable:
        return None


class _Right:
    """A step is right."""


class _Following:
    """What may be left of an expression, step by step, under every reading."""

    def __init__(self, start: Form, steps: Sequence[str]) -> None:
        self.steps, self.states, self.answer = steps, [start], value(start)
        self.body = len(steps) - closing(steps)
        self.result: Fraction | None = None  # of the last calculation
        self.done: dict[Form, Form] = {}  # what was calculated, and what it gave

    def verdict(self) -> Verdict | None:
        for index in range(self.body):
            found = self._step(index)
            if not isinstance(found, _Right):
                return found
        if self.body < len(self.steps):
            return self._stated()
        if self.result != self.answer:
            return Verdict(len(self.steps), "a step is missing (certain)")
        if not any(isinstance(state, Fraction) for state in self.states):
            return None  # the open terms cancel
        return Verdict(None, "every step is right (certain)")

    def _step(self, index: int) -> Verdict | _Right | None:
        """What is known of a step; None: it cannot be told."""
        step = self.steps[index]
        sides = step.strip().split("=")
        is_last = index == len(self.steps) - 1
        if is_last and not step.endswith("\n") and (not sides[-1] or sides[-1][-1] in "+-*/×÷−·("):
            return Verdict(index, "the solution is cut off in this step (likely)")
        read = [_tree(side) for side in sides if side.strip()]
        forms = [form_of(tree) for tree in read]
        if len(read) < len(sides) or len(read) == 1:
            return self._no_calculation(index, forms)
        if any(value(form) != value(forms[0]) for form in forms):
            false = false_calculation(step)
            if false is None and all(map(_is_whole, forms)):
                return Verdict(index, f"{step.strip()} is false (certain)")
            if false is None:
                return None  # rounded, or a chain in which "=" means "and then"
            if is_last and is_cut_off(step, false):
                return Verdict(index, f"false arithmetic, or cut off: {false.text} (likely)")
            return Verdict(index, f"false arithmetic: {false.text} (certain)")
        return self._take(index, read[0], forms[0], forms[-1])

    def _no_calculation(self, index: int, forms: Sequence[Form]) -> Verdict | _Right | None:
        """The question or a part of it again, or the answer alone in the last line."""
        if len(forms) != 1:
            return None
        form = forms[0]
        if any(_has(state, form) for state in self.states):
            return _Right()
        if not isinstance(form, Fraction):
            return self._take(index, _tree(self.steps[index].strip()), form, form)
        if index < len(self.steps) - 1:
            return None
        self.result = form
        if self.result == self.answer:
            return Verdict(None, "every step is right, the last one in the mind (certain)")
        return Verdict(index, "it states another answer, or is cut off (likely)")

    def _take(self, index: int, tree: Node, left: Form, right: Form) -> Verdict | _Right | None:
        """A true calculation: of what is it one?"""
        if isinstance(left, Fraction):  # 0+5=5
            self.result = value(right)
            return _Right() if any(_has(state, left) for state in self.states) else None
        found, doubtful = dict[Form, None](), False
        for state, meant in itertools.product(self.states, self._readings(left)):
            for new, sure in moves(state, meant, right):
                doubtful = doubtful or not sure
                if sure:
                    found[new] = None
        if len(found) > MAX_STATES:
            return None
        if found:
            self.states, self.result = list(found), value(right)
            self.done[left] = right
            return _Right()
        if doubtful or left in self.done or self._is_explained(index, tree, left):
            return None
        said = self.steps[index].strip()
        return Verdict(index, f"{said} is no calculation of what is open (likely)")

    def _readings(self, left: Form) -> list[Form]:
        """A left side as it is, and with the results of earlier steps put in: 5+3+2 is also 8+2
        after 5+3=8."""
        found = dict.fromkeys([left])
        for old, new in self.done.items():
            found |= {
                meant: None for form in found for meant, sure in moves(form, old, new) if sure
            }
            if len(found) > MAX_STATES:
                break
        return list(found)

    def _is_explained(self, index: int, tree: Node, left: Form) -> bool:
        """Whether a true calculation that takes no open terms can be right nevertheless."""
        if can_be_regrouped(left) or any(map(can_be_regrouped, self.states)):
            return True
        open_numbers = set[Fraction]().union(*map(numbers, self.states))
        used = {leaf.value for leaf in leaves(tree)}
        strange = used - open_numbers
        if strange and (has_product(left) or any(map(has_product, self.states))):
            return True  # 100*7 of 99*7, 6*2 of 6+6, 6+3 of 1.5*6
        if used <= set().union(*map(_squared, self.states)):
            return True  # 5+4 of 5*5-4*4
        if strange and any({x * 10**n for x in used} <= open_numbers for n in range(1, 7)):
            return True  # 3+4 of 300+400
        if self.answer == self.result and all(isinstance(x, Fraction) for x in self.states):
            # It is solved. The next result replaces the answer, or is a check.
            return value(left) == self.answer or self.body < len(self.steps)
        later = self._later(index)
        if any(abs(known - x) in later for known in open_numbers for x in strange):
            return True  # one number in two parts
        # In the mind: a number that it takes, or 50+5 for 47+8, where no number of it is open.
        wanted = strange | ({abs(value(left))} if strange == used else set())
        for state in self.states:
            ways = selections(state)
            if ways is None:
                return True
            for result, taken, rest in ways:
                kept = set[Fraction]().union(*map(numbers, rest))
                own = used - strange <= kept  # what the step takes beside it is still there
                if result in wanted and own and not _taken_again(taken, rest, later):
                    return True
        return False

    def _later(self, index: int) -> list[Fraction]:
        """The numbers that later steps calculate with, but for results that they take up."""
        found, results = list[Fraction](), list[Fraction]()
        for at, step in enumerate(self.steps[index : self.body]):
            try:
                *sides, end = [_tree(side) for side in step.split("=")]
                used = [leaf.value for side in sides for leaf in leaves(side)]
                result = abs(value(form_of(end)))
            except Unreadable:
                continue
            for number in used if at else ():
                if number in results:
                    results.remove(number)
                else:
                    found.append(number)
            results.append(result)
        return found

    def _stated(self) -> Verdict | None:
        """The lines of words at the end. What is left open may have been done in the mind."""
        said = final_answer(self.steps[-1])
        stated = None if said is None else value_of(said.replace("$", "").rstrip("%"))
        if stated == self.answer:
            return Verdict(None, "every step is right (certain)")
        if stated is None or self.body < len(self.steps) - 1:
            return None
        return Verdict(self.body, "it states another answer than the right one (likely)")


def _tree(side: str) -> Node:
    return parse(tokens_of(side))


def _squared(state: Form) -> set[Fraction]:
    """The numbers that are factors twice over in a product that is left."""
    if isinstance(state, Fraction):
        return set()
    kind, parts = state
    if kind != "*":
        return set().union(*map(_squared, parts))
    return {x for x in parts if isinstance(x, Fraction) and parts.count(x) > 1}


def _taken_again(taken: Sequence[Form], rest: Sequence[Form], later: Sequence[Fraction]) -> bool:
    """Whether later steps take two or more of the numbers that would have been used up in the mind:
    then they were not, and the step has miscopied one."""
    again = 0
    for known in set[Fraction]().union(*map(numbers, taken)):
        again += later.count(known) > sum(known in numbers(form) for form in rest)
    return again > 1


def _is_whole(form: Form) -> bool:
    return isinstance(form, Fraction) and form.denominator == 1


def _has(state: Form, form: Form) -> bool:
    """Whether a form is what is left, or a number of it."""
    if state == form:
        return True
    return not isinstance(state, Fraction) and any(_has(part, form) for part in state[1])
