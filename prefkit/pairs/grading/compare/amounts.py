"""Answers that are numbers, with or without a unit: by their exact values, or rounded fairly."""

import itertools
import re
from fractions import Fraction

from prefkit.pairs.grading.compare.comparison import (
    DIFFERENT,
    EQUAL,
    ROUNDED,
    UNREAD,
    Comparison,
    decided,
)
from prefkit.pairs.grading.rationals import value_of
from prefkit.pairs.grading.units import Quantity, quantity

# A comma that is no separator of thousands may be a decimal one.
_COMMA = re.compile(r"^([-+]?\d+),(\d{1,2}|\d{4,}|(?<=^0,)\d{3}|(?<=\d{4},)\d{3})$")
_DECIMAL = re.compile(r"[-+]?\d*\.\d+")
_ABOUT = re.compile(r"(?:≈|\\approx(?![A-Za-z])|(?:about|approximately|roughly)\s)\s*", re.I)
_LIKELY = 2  # decimals with which a right answer counts as rounded, without a mark that says so
_SURE = 3  # decimals with which an answer does


def quantities_equal(answer: str, gold: str) -> Comparison | None:
    """By exact values and units; None where one of them is not a number with a unit."""
    about = bool(_ABOUT.match(gold))
    answer, gold = (_ABOUT.sub("", text, count=1) if about else text for text in (answer, gold))
    if _COMMA.fullmatch(answer) or _COMMA.fullmatch(gold):
        values = [value_of(_COMMA.sub(r"\1.\2", text)) for text in (answer, gold)]
        # 1,22 may be a list as well: if it is not equal as a number, that is open.
        return EQUAL if values[0] == values[1] is not None else None
    one, other = quantity(answer), quantity(gold)
    if one is None or other is None:
        return None
    if one.kind and other.kind and one.kind != other.kind:
        return DIFFERENT
    converted = bool(one.kind and other.kind)
    pairs = itertools.product(
        _readings(one, converted, other.percent), _readings(other, converted, one.percent)
    )
    verdicts = [values_compared(*a, *b, about) for a, b in pairs]
    if EQUAL in verdicts or ROUNDED in verdicts:
        if _are_opposed(one, other):
            return UNREAD
        return EQUAL if EQUAL in verdicts else ROUNDED
    # 1 hour 30 minutes beside a bare 5400, which may be seconds
    return UNREAD if (one.larger or other.larger) and not converted else DIFFERENT


def _are_opposed(one: Quantity, other: Quantity) -> bool:
    """Whether both have a unit, and others: 5 am and 5 pm, 5 m/s and 5 km/h."""
    names = [found.telling or found.kind for found in (one, other)]
    return bool(one.telling or other.telling) and all(names) and names[0] != names[1]


def _readings(found: Quantity, converted: bool, both_percent: bool) -> list[tuple[Fraction, str]]:
    """(value, as written) of what the number can mean; "" where it is not as written."""
    value = found.value
    if value is None:
        return []
    if converted and found.factor != 1:
        return [(value * found.factor, "")]
    readings = [(value, found.number if found.scale == 1 else "")]
    readings += [(value * found.factor / larger, "") for larger in found.larger]
    if found.percent and not both_percent:
        readings.append((value / 100, ""))
    return readings


def values_compared(
    one: Fraction, written: str, other: Fraction, gold: str, about: bool = False
) -> Comparison:
    """Whether two values are the same, or one is the other one rounded.

    Args:
        one, other: the values of the answer and of the right answer.
        written, gold: both as written, "" where a value is not as written. Only a plain decimal
            counts as rounded, and only with enough significant digits: 0.000 stands for nothing
            but 0.
        about: whether the right answer is marked as rounded. Without a mark and with one decimal
            it is taken for exact (2.5), and an answer that rounds to it is undecided.
    """
    if one == other:
        return EQUAL
    given, right = decimals(written), decimals(gold)
    if right is not None and significant(gold) and (given is None or given > right):
        is_within = abs(one - other) <= Fraction(1, 2 * 10**right)
        is_rounded = significant(gold) >= 2 and (about or right >= _LIKELY)
        return (EQUAL if is_rounded else ROUNDED) if is_within else DIFFERENT
    is_rounded = given is not None and given >= _SURE and significant(written) >= 3
    if given is not None and is_rounded and (right is None or right > given):
        step = Fraction(1, 10**given)  # rounded, or cut off after the digits written
        return decided(
            abs(one - other) <= step / 2 or (0 < abs(other) - abs(one) < step and one * other > 0)
        )
    return DIFFERENT


def decimals(written: str) -> int | None:
    """Decimals of a plain decimal number, None for anything else."""
    match = _DECIMAL.fullmatch(written.strip("() "))
    return len(match[0].partition(".")[2]) if match else None


def significant(written: str) -> int:
    """Significant digits of a decimal number: 3 of 0.0120, 0 of 0.000."""
    return len(re.sub(r"\D", "", written).lstrip("0"))
