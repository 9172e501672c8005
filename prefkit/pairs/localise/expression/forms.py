"""Expressions as sums and products without an order, and what a calculation makes of one.

A form is an exact number, or ("+", terms), ("*", factors) or ("/", (form,)), 1 over a form. Terms
are signed and factors may be 1/n, so that a sum or a product can be taken in any order: 47+8-9 is
the sum of 47, 8 and -9, and 12/4*3 the product of 12, 1/4 and 3. Zeros of a sum and ones of a
product are left out, and a sum within a sum is opened where only "+" stands before it.
"""

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

from prefkit.pairs.grading.rationals import Node, Number, Product, Sum, Unreadable

# A number, or (kind, parts); the parts are forms in a fixed order. mypy knows no recursive tuples.
Form = Fraction | tuple[str, tuple]
MAX_PARTS = 12  # terms or factors of which all selections are made


def form_of(node: Node) -> Form:
    """The form of a tree.

    Raises:
        Unreadable: a power, a percentage or a division by zero.
    """
    match node:
        case Number(value, _, False):
            return value
        case Sum(terms):
            return total([form_of(x) if sign > 0 else negated(form_of(x)) for sign, x in terms])
        case Product(factors):
            return product([form_of(x) if way > 0 else inverted(form_of(x)) for way, x in factors])
    raise Unreadable("a power or a percentage")


def total(terms: Sequence[Form]) -> Form:
    """The sum of forms."""
    parts = [part for term in terms for part in _parts(term, "+") if part != 0]
    if len(parts) < 2:
        return parts[0] if parts else Fraction(0)
    return "+", tuple(sorted(parts, key=repr))


def product(factors: Sequence[Form]) -> Form:
    """The product of forms; at most one sign is kept, as the factor -1."""
    sign, parts = 1, list[Form]()
    for part in (part for factor in factors for part in _parts(factor, "*")):
        if isinstance(part, Fraction):
            sign = -sign if part < 0 else sign
            part = abs(part)
        if part != 1:
            parts.append(part)
    if not parts:
        return Fraction(sign)
    if len(parts) == 1 and (sign > 0 or isinstance(parts[0], Fraction)):
        return parts[0] if sign > 0 else -parts[0]  # type: ignore[operator]
    return "*", tuple(sorted(parts + [Fraction(-1)] * (sign < 0), key=repr))


def negated(form: Form) -> Form:
    return product([Fraction(-1), form])


def inverted(form: Form) -> Form:
    """1 over a form.

    Raises:
        Unreadable: it is 0.
    """
    if isinstance(form, Fraction):
        if form == 0:
            raise Unreadable("a division by zero")
        return 1 / form
    return form[1][0] if form[0] == "/" else ("/", (form,))


def moves(form: Form, left: Form, right: Form) -> Iterator[tuple[Form, bool]]:
    """What can become of an expression when a part of it is calculated.

    Args:
        form: what is left of the expression.
        left: the sum or product that a step calculates.
        right: what it gives, of the same value.

    Yields:
        The form afterwards, of the same value as before, and whether that is surely meant. 3+2=5
        is surely meant for -3-2, and 4*3=12 for /4/3, but 9-8=1 for 8-9 may as well be a mistake.
    """
    if isinstance(form, Fraction) or isinstance(left, Fraction):
        return
    kind, parts = form
    if kind == left[0] and kind in "+*":
        rest = _without(parts, left[1])
        if rest is not None:
            yield _built(kind, [*rest, right]), True
        elif kind == "+" or right != 0:
            yield from _turned(kind, parts, left[1], right)
    for index, part in enumerate(parts):
        for new, sure in moves(part, left, right):
            yield _built(kind, [*parts[:index], new, *parts[index + 1 :]]), sure


def can_be_regrouped(form: Form) -> bool:
    """Whether brackets can be opened in a form, or a factor that terms share be taken out, so that
    right calculations exist that are none of its terms or factors."""
    if isinstance(form, Fraction):
        return False
    kind, parts = form
    inner = [part for part in parts if not isinstance(part, Fraction)]
    if kind != "+":
        return bool(inner)
    factors = [set(_parts(part, "*")) - {Fraction(-1)} for part in inner]
    shared = any(one & other for one, other in itertools.combinations(factors, 2))
    return shared or any(part[0] != "*" or can_be_regrouped(part) for part in inner)


def selections(form: Form) -> list[tuple[Fraction, list[Form], list[Form]]] | None:
    """Of two or more of a form's terms, or of the factors of one term: the value without its sign,
    what is taken, and what is left. None where there are too many."""
    terms, found = _parts(form, "+"), list[tuple[Fraction, list[Form], list[Form]]]()
    if len(terms) > MAX_PARTS or any(len(_parts(term, "*")) > MAX_PARTS for term in terms):
        return None
    for some, rest in _selected(terms):
        found.append((abs(value(total(some))), some, rest))
    for index, term in enumerate(terms):
        for some, rest in _selected(_parts(term, "*")):
            others = [*terms[:index], *terms[index + 1 :]]
            found.append((abs(value(product(some))), some, [*rest, *others]))
    return found


def value(form: Form) -> Fraction:
    """The exact value of a form.

    Raises:
        Unreadable: a division by zero.
    """
    if isinstance(form, Fraction):
        return form
    kind, parts = form
    result = Fraction(kind != "+")
    for part in map(value, parts):
        result = result + part if kind == "+" else result * part
    if kind == "/":
        return value(inverted(result))
    return result


def numbers(form: Form) -> set[Fraction]:
    """The numbers of a form as they can be written: without signs, 1/4 also as 4."""
    if isinstance(form, Fraction):
        return {abs(form), abs(1 / form)} if form else {form}
    return set[Fraction]().union(*map(numbers, form[1]))


def has_product(form: Form) -> bool:
    return not isinstance(form, Fraction) and (form[0] != "+" or any(map(has_product, form[1])))


def _parts(form: Form, kind: str) -> tuple[Form, ...]:
    return form[1] if not isinstance(form, Fraction) and form[0] == kind else (form,)


def _built(kind: str, parts: Sequence[Form]) -> Form:
    if kind == "/":
        return inverted(parts[0])
    return total(parts) if kind == "+" else product(parts)


def _without(parts: Sequence[Form], taken: Sequence[Form]) -> list[Form] | None:
    """The parts that remain, or None where not all that is taken is there."""
    rest = list(parts)
    for part in taken:
        if part not in rest:
            return None
        rest.remove(part)
    return rest


def _turned(
    kind: str, parts: Sequence[Form], left: Sequence[Form], right: Form
) -> Iterator[tuple[Form, bool]]:
    """The calculation with all signs turned, or all factors inverted, or another sign."""
    turn = negated if kind == "+" else inverted
    taken = [turn(part) for part in left if kind == "+" or part != 0]
    rest = _without(parts, taken)
    if rest is not None:
        yield _built(kind, [*rest, turn(right)]), all(_is_turned(part, kind) for part in taken)
    minus = Fraction(-1)
    if kind == "*" and minus in left:
        rest = _without(parts, [part for part in left if part != minus])
        if rest is not None:
            yield product([*rest, minus, right]), False


def _is_turned(part: Form, kind: str) -> bool:
    """Whether a term is subtracted, a factor divided by."""
    if isinstance(part, Fraction):
        return part < 0 if kind == "+" else part.numerator == 1
    return part[0] == "/" if kind == "*" else Fraction(-1) in part[1]


def _selected(parts: Sequence[Form]) -> Iterator[tuple[list[Form], list[Form]]]:
    """All selections of two parts or more, and what each leaves."""
    for chosen in itertools.product((False, True), repeat=len(parts)):
        if sum(chosen) > 1:
            rest = [part for part, taken in zip(parts, chosen, strict=True) if not taken]
            yield list(itertools.compress(parts, chosen)), rest
