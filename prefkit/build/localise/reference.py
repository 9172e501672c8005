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

from prefkit.build.localise.calculations import Calculation, calculations, numbers
from prefkit.build.localise.origins import stated
from prefkit.build.rationals import (
    Node,
    Number,
    Power,
    Product,
    Sum,
    Unreadable,
    evaluate,
    leaves,
)

MAX_TERMS, FEW_TERMS, MAX_FACTORS = 8, 5, 7
_TOLERANCE = Fraction(1, 1000)  # of the value, where one of the two is not whole

# A product: (factor, exponent ±1) …; a value is a sum of such products.
Monomial = tuple[tuple[Fraction, int], ...]
Polynomial = tuple[Monomial, ...]
Made = dict[Fraction, Polynomial]  # a result → the sum that gave it
Leaves = frozenset[Fraction]
_MINUS = (Fraction(-1), 1)  # how a sign is kept in a product
_NEUTRAL = frozenset(map(Fraction, (0, 1, 10, 100)))


class Reachable:
    """The values that can be reached from a right solution.

    Args:
        question: its text.
        solution: a right solution, its steps with or without calculator marks.
        wide: take any value that comes out anywhere on the way, and brackets multiplied out term
            by term: (16 - 3 - 4) * 2 gives 16 * 2 + 3 * 2. In a right solution such a step is a
            way of its own; in a wrong one it mostly is the mistake of forgetting terms, or chance.
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
        if "cent" in question.lower() or "%" in question:  # dollars or cents, 0.5 or 50 %
            for value, ways in list(found.items()):
                for factor in (Fraction(100), Fraction(1, 100)):
                    found.setdefault(value * factor, set()).update(ways)
        self._found, self._ordered = found, sorted(found)
        shares = {x for x in set(found) | self._stated if 0 < x < 1}
        self._shares = sorted({y for x in shares for y in (1 - x, 1 + x, 100 - 100 * x,
                                                           100 + 100 * x)})  # fmt: skip
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
                _some_terms(full if self._wide else narrow, self._wide or not made, self._wide),
                _one_term(full if self._wide else tuple(x for x in full if _MINUS not in x)),
                _inner(left, made),
            )
        if chosen is not None:
            self._made.setdefault(result, chosen)


def contains(ordered: Sequence[Fraction], value: Fraction) -> bool:
    """Whether a sorted sequence holds a value, to a thousandth where it is not whole."""
    return next(matches(ordered, value), None) is not None


def matches(ordered: Sequence[Fraction], value: Fraction) -> Iterator[Fraction]:
    """The members of a sorted sequence that a value equals, see `contains`."""
    slack = abs(value) * _TOLERANCE
    for place in range(bisect_left(ordered, value - slack), len(ordered)):
        found = ordered[place]
        if found > value + slack:
            return
        if found == value or found.denominator != 1 or value.denominator != 1:
            yield found


def told(line: str) -> list[Calculation]:
    """The marks of a line where it has any, else its plain calculations."""
    found = calculations(line)
    return [calculation for calculation in found if calculation.marked] or found


# --------------------------------------------------------------------------- sums of products


def readings(node: Node, made: Made, stated_numbers: frozenset[Fraction]) -> list[Made]:
    """What may be put in for the numbers of a tree: nothing, and every earlier result; a number
    that the question states as well, with and without."""
    used = {leaf.value for leaf in leaves(node)}
    sure = {x: made[x] for x in used - stated_numbers if x in made}
    both = {x: made[x] for x in used & stated_numbers if x in made}
    return [{}, {**sure, **both}, sure] if both else [{}, sure]


def made_of(polynomial: Polynomial) -> Leaves:
    """The numbers that a sum of products goes back to, without 1 and powers of 10.

    A share counts as what it divides by or as its percentage: 1/2 and 0.5 as 2, 0.3 and 30 % as 30.
    """
    found = set()
    for monomial in polynomial:
        for value, _ in monomial:
            value = abs(value)
            if 0 < value < 1:
                value = 1 / value if (1 / value).denominator == 1 else value * 100
            if value not in _NEUTRAL:
                found.add(value)
    return frozenset(found)


def _inner(node: Node, made: Made) -> Iterator[tuple[Fraction, Leaves]]:
    """The value of a tree and of every tree in it, with the numbers it goes back to."""
    if not isinstance(node, Number):
        try:
            value = evaluate(node)
        except Unreadable:
            return
        whole = polynomial(node, made, True)
        yield value, made_of(whole or ())
    if isinstance(node, Sum | Product):
        for _, part in node.terms if isinstance(node, Sum) else node.factors:
            yield from _inner(part, made)


def polynomial(node: Node, made: Made, wide: bool) -> Polynomial | None:
    """A tree as a sum of products, with the sums of earlier results put in for their values.

    None where it has no value. Where it would be larger than the bounds it stays one number.
    """
    match node:
        case Number():
            value = evaluate(node)
            return made.get(value) or (((value, 1),),)
        case Sum(terms):
            found: list[Monomial] = []
            for sign, term in terms:
                inner = polynomial(term, made, wide)
                if inner is None:
                    return None
                found += [_signed(monomial, sign) for monomial in inner]
            if made and len(found) > (MAX_TERMS if wide else FEW_TERMS):
                return polynomial(node, {}, wide)  # too many ways to be more than chance
            return tuple(found) if len(found) <= MAX_TERMS else _opaque(node)
        case Product(factors):
            return _product(node, factors, made, wide)
        case Power():
            return _opaque(node)


def _product(
    node: Node,
    factors: tuple[tuple[int, Node], ...],
    made: Made,
    wide: bool,
) -> Polynomial | None:
    total: Polynomial = ((),)
    for exponent, factor in factors:
        inner = polynomial(factor, made, wide)
        if inner is not None and len(inner) > 1 and (exponent < 0 or not wide):
            inner = _opaque(factor)  # a sum among the factors stays one number
        if inner is None:
            return None
        if exponent < 0:
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
    return monomial if sign > 0 else (_MINUS, *monomial)


def _one_term(polynomial: Polynomial) -> Iterator[tuple[Fraction, Leaves]]:
    """The products of some factors of one term."""
    for term in polynomial:
        for kept in _subsets(term):
            if kept:
                yield _value((kept,)), made_of((kept,))


def _some_terms(
    polynomial: Polynomial, any_terms: bool, wide: bool
) -> Iterator[tuple[Fraction, Leaves]]:
    """The values of two or more terms of a sum, without some factors that they have in common.

    Args:
        polynomial: the terms, in the order they are written in.
        any_terms: else only terms that stand next to each other (a running total).
        wide: else a factor is left out only of all the terms that have it.
    """
    size = len(polynomial)
    for count in range(2, size + 1):
        chosen = itertools.combinations(range(size), count)
        for places in chosen:
            if not any_terms and places[-1] - places[0] >= count:
                continue
            terms = tuple(polynomial[place] for place in places)
            for dropped in _subsets(_common(terms)):
                others = sum(all(x in term for x in dropped) for term in polynomial)
                if wide or not dropped or others == count:
                    left = tuple(tuple(_without(term, dropped)) for term in terms)
                    yield _value(left), made_of(left)


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


def _without(term: Monomial, dropped: Iterable[tuple[Fraction, int]]) -> Monomial:
    left = list(term)
    for factor in dropped:
        left.remove(factor)
    return tuple(left)


def _value(terms: Iterable[Monomial]) -> Fraction:
    total = Fraction(0)
    for term in terms:
        product = Fraction(1)
        for value, exponent in term:
            if exponent > 0:
                product *= value
            elif value:
                product /= value
        total += product
    return total
