"""What can be derived on the path of a right solution, and the first step that cannot.

A right solution shows one path of many: where it computes 16 - 3 - 4 = 9, 16 - 3 = 13 is right as
well, and so is 3 + 4 = 7. So its calculations are written as sums of products of the question's
numbers, with earlier results put in; whatever is a part of such a sum (some of its terms, without
some of the factors that they share) counts as reachable. A step with a result that is not
reachable is taken as wrong. Both mistakes are possible: another path to the answer may pass over
values that this one never touches, and a wrong step may hit a reachable value by chance.
"""

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from fractions import Fraction

from prefkit.pairs.localise.arithmetic.calculations import Calculation, calculations, numbers
from prefkit.pairs.localise.program.origins import stated
from prefkit.pairs.localise.program.terms import (
    Leaves,
    Made,
    Polynomial,
    inner_values,
    is_negative,
    one_term,
    polynomial,
    readings,
    some_terms,
)

_TOLERANCE = Fraction(1, 1000)  # of the value, where one of the two is not whole
_HUNDREDTHS = re.compile(r"%|\bcents?\b|percent|¢", re.I)


class Reachable:
    """The values that can be reached from a right solution.

    Args:
        question: its text.
        solution: a right solution, its steps with or without calculator marks.
        wide: take any value that comes out anywhere on the path, and brackets multiplied out term
            by term: (16 - 3 - 4) * 2 gives 16 * 2 + 3 * 2. In a right solution such a step is a
            path of its own; in a wrong one it mostly is the mistake of forgetting terms, or chance.
    """

    def __init__(self, question: str, solution: str, wide: bool = True) -> None:
        self._stated, self._wide = stated(question), wide
        self._made: Made = {}
        self._results: list[Fraction] = []
        found: dict[Fraction, set[Leaves]] = {}
        for line in solution.split("\n"):
            for calculation in told(line):
                self._results.append(calculation.result.value)
                for value, used in self._parts(calculation):
                    found.setdefault(abs(value), set()).add(used)
        shares = {x for x in set(found) | self._stated if 0 < x < 1}
        rests = {1 - x for x in shares} | {1 + x for x in shares}
        if _HUNDREDTHS.search(question):  # dollars or cents, 0.5 or 50 %
            rests |= {100 * x for x in rests}
            for value, ways in list(found.items()):
                for factor in (Fraction(100), Fraction(1, 100)):
                    found.setdefault(value * factor, set()).update(ways)
        self._found, self._ordered, self._shares = found, sorted(found), sorted(rests)
        told_in_words = {number.value for number in numbers(solution)} - self._stated
        self._results = sorted({abs(x) for x in [*self._results, *told_in_words]})

    def has(self, value: Fraction, used: Leaves | None = None) -> bool:
        """Whether a value (or its negative) is a result or a partial result.

        Args:
            value: what a step gives.
            used: the numbers it goes back to (`made_of`); unless `wide`, a partial result must
                go back to the same ones. None = any.
        """
        value = abs(value)
        if contains(self._results, value) or contains(self._shares, value):
            return True
        for match in matches(self._ordered, value):
            if self._wide or used is None or used in self._found[match]:
                return True
        return False

    def _parts(self, calculation: Calculation) -> Iterator[tuple[Fraction, Leaves]]:
        left, result = calculation.left, calculation.result.value
        if left is None:
            return
        chosen: Polynomial | None = None
        for made in readings(left, self._made, self._stated):
            full = polynomial(left, made, True)
            if full is None:
                continue
            chosen = full
            narrow = polynomial(left, made, False) or full
            yield from itertools.chain(
                some_terms(full if self._wide else narrow, self._wide or not made, self._wide),
                one_term(full if self._wide else tuple(x for x in full if not is_negative(x))),
                inner_values(left, made),
            )
        if chosen is not None:
            self._made.setdefault(result, chosen)


def contains(ordered: Sequence[Fraction], value: Fraction) -> bool:
    """Whether a sorted sequence holds a value, to a thousandth where it is not whole."""
    return next(matches(ordered, value), None) is not None


def matches(ordered: Sequence[Fraction], value: Fraction) -> Iterator[Fraction]:
    """The members of a sorted sequence that a value equals, see `contains`."""
    slack = abs(value) * _TOLERANCE
    for index in range(bisect_left(ordered, value - slack), len(ordered)):
        found = ordered[index]
        if found > value + slack:
            return
        if found == value or found.denominator != 1 or value.denominator != 1:
            yield found


def told(line: str) -> list[Calculation]:
    """The marks of a line where it has any, else its plain calculations."""
    found = calculations(line)
    return [calculation for calculation in found if calculation.marked] or found
