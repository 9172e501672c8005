"""False arithmetic: the first step with a calculation whose result is not what it says.

Values are exact fractions. A result is right when it is the value rounded to the digits written
(56/6 = 9.33, also cut off: 9.3 of 9.39), when the percent sign or a unit of hundred stands between
the two, or when a unit mentioned on both sides is converted (90 minutes, 1.5 hours).
"""

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction

from prefkit.pairs.grading.rationals import Node, Number, Unreadable, evaluate
from prefkit.pairs.localise.calculations import Calculation, calculations
from prefkit.pairs.localise.verdict import Verdict

# Words that stand for a conversion inside a calculation, and by how much.
_CONVERSIONS = (
    (re.compile(r"\bcents?\b|¢|%|\bpercent|\bcm\b|centim", re.I), (100,)),
    (re.compile(r"\bminutes?\b|\bhours?\b|\bseconds?\b|\bmins?\b|\bhrs?\b", re.I), (60, 3600)),
    (re.compile(r"\binch|\bfoot\b|\bfeet\b|\bdozen|\bmonths?\b|\byears?\b", re.I), (12,)),
    (re.compile(r"\bweeks?\b|\bdays?\b", re.I), (7,)),
    (re.compile(r"\bfeet\b|\byards?\b", re.I), (3,)),
    (re.compile(r"\bounces?\b|\boz\b|\bpounds?\b|\blbs?\b", re.I), (16,)),
    (re.compile(r"\bkg\b|\bkm\b|kilo|\bmilli|\bthousand|\bm[lg]\b|\btons?\b", re.I), (1000,)),
    (re.compile(r"\bmillions?\b", re.I), (10**6,)),
)
_WHOLE = re.compile(r"\bremain|\bremainder|left ?over|\bwhole\b|\bround|\bfull\b|\bapprox", re.I)
PERCENTS = ("hundredths", "plain", "relative")


def first_false(steps: Sequence[str]) -> Verdict:
    """The first step that holds a false calculation."""
    for place, step in enumerate(steps):
        wrong = false_calculation(step)
        if wrong is not None:
            return Verdict(place, f"false arithmetic: {wrong.text} (certain)")
    return Verdict(None, "no calculation is false")


def false_calculation(step: str) -> Calculation | None:
    """The first calculation of a step that is false under every reading, or None."""
    factors, cut = conversions(step), bool(_WHOLE.search(step))
    return next((found for found in calculations(step) if not is_right(found, factors, cut)), None)


def is_cut_off(step: str, found: Calculation) -> bool:
    """Whether a false calculation may be a true one of which the text ends too early: "22+3=2"."""
    written = step.rpartition("=")[2].strip()
    if found.left is None or not written or written != step[-len(written) :]:
        return False
    right = {str(value) for value in values(found.left) if value.denominator == 1}
    return any(value.startswith(written) and value != written for value in right)


def conversions(step: str) -> list[Fraction]:
    """The factors that units mentioned in a step may put between the sides of an equation."""
    factors = [Fraction(1)]
    for words, values in _CONVERSIONS:
        if words.search(step):
            factors += [Fraction(value) for value in values]
            factors += [Fraction(1, value) for value in values]
    return factors


def is_right(
    found: Calculation, factors: Sequence[Fraction] = (Fraction(1),), cut: bool = False
) -> bool:
    """Whether a calculation holds; True also where its left side could not be read.

    Args:
        found: the calculation.
        factors: of the units that may stand between its sides, see `conversions`.
        cut: the step speaks of whole things or a remainder, so 50/3 may be 16 or 17.
    """
    if found.left is None:
        return True
    lefts = values(found.left)
    if not lefts:
        return False  # a division by zero
    sides = [(value, 0, True) for value in values(found.right)]
    sides += [(value, found.result.decimals, False) for value in values(found.result)]
    for left, (right, decimals, whole) in itertools.product(lefts, sides):
        if whole and isinstance(found.right, Number):
            decimals = found.right.decimals
        if found.result.percent and right == found.result.value / 100:
            decimals += 2
        for factor in factors:
            if close(left * factor, right, decimals, found.rough or cut):
                return True
    return False


def values(node: Node) -> list[Fraction]:
    """What an expression can be worth, by the readings of its percent signs; [] for x/0."""
    found: list[Fraction] = []
    for percent in PERCENTS:
        try:
            value = evaluate(node, percent)
        except Unreadable:
            continue
        if value not in found:
            found.append(value)
    return found


def close(value: Fraction, written: Fraction, decimals: int, rough: bool = False) -> bool:
    """Whether `written` is `value` to the decimals it was written with.

    Rounded to nearest; with decimals, or where the sign is ≈, cutting off is accepted as well. A
    value above 0 may not be written as 0.
    """
    # What a machine prints with sixteen digits is right to twelve.
    difference, unit = abs(value - written), Fraction(1, 10 ** min(decimals, 12))
    if difference == 0:
        return True
    if written == 0 or (value.denominator == 1 and decimals == 0 and not rough):
        return False
    if rough:
        return difference < unit
    cut_off = decimals > 0 and abs(written) < abs(value) and written * value > 0
    return difference < unit if cut_off else difference <= unit / 2
