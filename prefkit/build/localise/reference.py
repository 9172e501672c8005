"""What can be worked out on the way of a right solution, and the first step that cannot.

A right solution shows one way of many: where it computes 16 - 3 - 4 = 9, 16 - 3 = 13 is right as
well, and so is 3 + 4 = 7. So its calculations are written as sums of products of the question's
numbers, with earlier results put in; whatever is a part of such a sum (some of its terms, without
some of the factors that they share) counts as reachable. A step with a result that is not
reachable is taken as wrong. Both mistakes are possible: another way to the answer may pass over
values that this one never touches, and a wrong step may hit a reachable value by chance.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from prefkit.build.localise.calculations import Calculation, calculations
from prefkit.build.localise.origins import stated
from prefkit.build.rationals import Node, Number, Power, Product, Sum, Unreadable, evaluate

MAX_TERMS, MAX_FACTORS, MAX_VALUES = 8, 7, 60_000
_TOLERANCE = Fraction(1, 1000)  # of the value, where one of the two is not whole

# A product: (factor, exponent ±1) …; a value is a sum of such products.
Monomial = tuple[tuple[Fraction, int], ...]
Polynomial = tuple[Monomial, ...]


class Reachable:
    """The values that can be reached from a right solution.

    Args:
        question: its text.
        solution: a right solution, its steps with or without calculator marks.

    Attributes:
        results: the values that the solution itself states as results, in their order.
        parts: partial results, sorted.
    """

    def __init__(self, question: str, solution: str) -> None:
        self.question = stated(question)
        self.results: list[Fraction] = []
        self._made: dict[Fraction, Polynomial] = {}  # a result → the sum that gave it
        found: set[Fraction] = set()
        for line in solution.split("\n"):
            for calculation in _told(line):
                found |= self._add(calculation)
        shares = {x for x in found | self.question if 0 < x < 1}
        found |= {1 - x for x in shares} | {1 + x for x in shares}
        found |= {100 - 100 * x for x in shares} | {100 + 100 * x for x in shares}
        if "cent" in question.lower() or "%" in question:  # dollars or cents, 0.5 or 50 %
            found |= {x * 100 for x in found} | {x / 100 for x in found}
        self.parts = sorted(found | set(self.results))

    def has(self, value: Fraction) -> bool:
        """Whether a value (or its negative) is a result or a partial result."""
        return contains(self.parts, value) or contains(self.parts, -value)

    def is_result(self, value: Fraction) -> bool:
        """Whether the right solution itself states the value as a result."""
        return contains(sorted(self.results), value)

    def _add(self, calculation: Calculation) -> set[Fraction]:
        self.results += [calculation.result.value]
        if calculation.left is None:
            return {calculation.result.value}
        parts = set(_inner(calculation.left)) | {calculation.result.value}
        plain = _polynomial(calculation.left, {})
        whole = _polynomial(calculation.left, self._made)
        for polynomial in (plain, whole):
            if polynomial is not None:
                parts |= set(itertools.islice(_parts(polynomial), MAX_VALUES))
        made = whole or plain
        if made is not None and calculation.result.value not in self.question:
            self._made.setdefault(calculation.result.value, made)
        return parts


def contains(ordered: Sequence[Fraction], value: Fraction) -> bool:
    """Whether a sorted sequence holds a value, to a thousandth where it is not whole."""
    slack = abs(value) * _TOLERANCE
    for found in ordered[bisect_left(ordered, value - slack) :]:
        if found > value + slack:
            return False
        whole = found.denominator == 1 and value.denominator == 1
        if found == value or not whole:
            return True
    return False


def _told(line: str) -> list[Calculation]:
    """The marks of a line where it has any, else its plain calculations."""
    found = calculations(line)
    marked = [calculation for calculation in found if calculation.marked]
    return marked or found


# --------------------------------------------------------------------------- sums of products


def _inner(node: Node) -> Iterator[Fraction]:
    """The value of a tree and of every tree in it."""
    if not isinstance(node, Number):
        try:
            yield evaluate(node)
        except Unreadable:
            return
    if isinstance(node, Sum):
        for _, part in node.terms:
            yield from _inner(part)
    elif isinstance(node, Product):
        for _, part in node.factors:
            yield from _inner(part)


def _polynomial(node: Node, made: dict[Fraction, Polynomial]) -> Polynomial | None:
    """A tree as a sum of products, with the sums of earlier results put in for their values.

    None where it would be larger than the bounds: then the caller does without.
    """
    match node:
        case Number():
            value = evaluate(node)
            if made and value in made:
                return made[value]
            return (((value, 1),),)
        case Sum(terms):
            found: list[Monomial] = []
            for sign, term in terms:
                inner = _polynomial(term, made)
                if inner is None:
                    return None
                found += [_signed(monomial, sign) for monomial in inner]
            return tuple(found) if len(found) <= MAX_TERMS else _opaque(node)
        case Product(factors):
            return _product(node, factors, made)
        case Power():
            return _opaque(node)


def _product(
    node: Node, factors: tuple[tuple[int, Node], ...], made: dict[Fraction, Polynomial]
) -> Polynomial | None:
    total: Polynomial = ((),)
    for exponent, factor in factors:
        inner = _polynomial(factor, made)
        if inner is None:
            return None
        if exponent < 0:
            if len(inner) > 1:  # divided by a sum: that stays as it is
                inner = _opaque(factor) or ()
            inner = tuple(tuple((x, -power) for x, power in monomial) for monomial in inner)
        total = tuple(a + b for a, b in itertools.product(total, inner))
        if len(total) > MAX_TERMS or any(len(monomial) > MAX_FACTORS for monomial in total):
            return _opaque(node)
    return total


def _opaque(node: Node) -> Polynomial | None:
    try:
        return (((evaluate(node), 1),),)
    except Unreadable:
        return None


def _signed(monomial: Monomial, sign: int) -> Monomial:
    return monomial if sign > 0 else ((Fraction(-1), 1), *monomial)


def _parts(polynomial: Polynomial) -> Iterator[Fraction]:
    """The values of some terms of a sum, without some of the factors they have in common."""
    size = len(polynomial)
    for count in range(1, size + 1):
        for terms in itertools.combinations(polynomial, count):
            common = _common(terms)
            for dropped in _subsets(common):
                yield _value(terms, dropped)
            if count == 1:  # some factors of one product
                for kept in _subsets(terms[0]):
                    if kept:
                        yield _value((tuple(kept),), ())


def _common(terms: Sequence[Monomial]) -> list[tuple[Fraction, int]]:
    shared = []
    rest = [list(term) for term in terms[1:]]
    for factor in terms[0]:
        if factor[0] != -1 and all(factor in other for other in rest):
            shared.append(factor)
            for other in rest:
                other.remove(factor)
    return shared[:5]


def _subsets(items: Sequence[tuple[Fraction, int]]) -> Iterable[tuple[tuple[Fraction, int], ...]]:
    return itertools.chain.from_iterable(
        itertools.combinations(items, count) for count in range(len(items) + 1)
    )


def _value(terms: Iterable[Monomial], dropped: Iterable[tuple[Fraction, int]]) -> Fraction:
    total = Fraction(0)
    for term in terms:
        left = list(term)
        for factor in dropped:
            left.remove(factor)
        product = Fraction(1)
        for value, exponent in left:
            if exponent > 0:
                product *= value
            elif value:
                product /= value
        total += product
    return total
