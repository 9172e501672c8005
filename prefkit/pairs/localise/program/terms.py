"""Calculations as sums of products of numbers, and the parts of such sums.

16 - 3 - 4 = 9 and 9 * 2 = 18 give, with the first put into the second, 16*2 - 3*2 - 4*2. A part is
some of the terms, without some of the factors they share. `Leaves` are the numbers that a part
goes back to: two values that are equal by chance mostly differ in them.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from prefkit.pairs.grading.rationals import (
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

# A product: (factor, exponent ±1) …; a value is a sum of such products.
Monomial = tuple[tuple[Fraction, int], ...]
Polynomial = tuple[Monomial, ...]
Made = dict[Fraction, Polynomial]  # a result → the sum that gave it
Leaves = frozenset[Fraction]
_MINUS = (Fraction(-1), 1)  # how a sign is kept in a product
_NEUTRAL = frozenset(map(Fraction, (0, 1, 10, 100)))


def is_negative(monomial: Monomial) -> bool:
    """Whether the term is subtracted."""
    return _MINUS in monomial


def readings(node: Node, made: Made, stated_numbers: frozenset[Fraction]) -> list[Made]:
    """What may be put in for the numbers of a tree: nothing, and every earlier result; a number
    that the question states as well, with and without."""
    used = {leaf.value for leaf in leaves(node)}
    sure = {x: made[x] for x in used - stated_numbers if x in made}
    both = {x: made[x] for x in used & stated_numbers if x in made}
    return [{}, {**sure, **both}, sure] if both else [{}, sure]


def made_of(polynomial: Polynomial) -> Leaves:
    """The numbers that a sum of products goes back to, without 1 and powers of 10.

    What may be two spellings of one share counts as one: 1/4, 0.25, 25 % all as 4, 0.3 as 30.
    """
    found = set()
    for monomial in polynomial:
        for value, _ in monomial:
            value = abs(value)
            if 0 < value < 1:
                value = 1 / value if (1 / value).denominator == 1 else value * 100
            if 0 < value < 100 and (100 / value).denominator == 1:
                value = min(value, 100 / value)
            if value not in _NEUTRAL:
                found.add(value)
    return frozenset(found)


def inner_values(node: Node, made: Made) -> Iterator[tuple[Fraction, Leaves]]:
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
            yield from inner_values(part, made)


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


def one_term(polynomial: Polynomial) -> Iterator[tuple[Fraction, Leaves]]:
    """The products of some factors of one term."""
    for term in polynomial:
        for kept in _subsets(term):
            if kept:
                yield _value((kept,)), made_of((kept,))


def some_terms(
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
        for indices in chosen:
            if not any_terms and indices[-1] - indices[0] >= count:
                continue
            terms = tuple(polynomial[index] for index in indices)
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
