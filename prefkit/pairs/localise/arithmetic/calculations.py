"""The calculations written in a step, and whether they are true.

`<<48/2=24>>`, `6 inches * 2 = 12 inches`, `2+3 = 5 x 4`: around every "=" the longest expressions
on both sides are read. Units may stand between a number and an operator; where a word makes the
reading doubtful (a variable, a time of day) there is no calculation.

Values are exact fractions. A result is right when it is the value rounded to the digits written
(56/6 = 9.33, also cut off: 9.3 of 9.39), when the percent sign or a unit of hundred stands between
the two, or when a unit mentioned on both sides is converted (90 minutes, 1.5 hours).
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from prefkit.pairs.grading.rationals import Node, Number, Sum, Unreadable, evaluate
from prefkit.pairs.localise.arithmetic.reading import (
    backwards,
    forwards,
    pieces_of,
    whole_expression,
)
from prefkit.pairs.localise.verdict import Verdict

MARK = re.compile(r"<<([^<>=\n]*)=([^<>\n]*)>>")
MAX_LENGTH = 4000  # characters of a step that are looked at


@dataclass(frozen=True)
class Calculation:
    """An expression and what is said to be its result.

    Attributes:
        text: as written, shortened.
        left: the expression before "="; None where it could not be read ("6 PM - 1 PM = 4").
        right: the expression after it, mostly a number.
        result: the number that stands for the result: the first one after "=".
        marked: from a calculator mark.
        rough: "≈" stands for "=".
    """

    text: str
    left: Node | None
    right: Node
    result: Number
    marked: bool = False
    rough: bool = False


def unmarked(step: str) -> str:
    """A step without calculator marks."""
    return re.sub(r"<<[^<>\n]*>>", "", step)


def calculations(step: str) -> list[Calculation]:
    """Everything a step calculates, marks first, else in the order of the text."""
    step = step[:MAX_LENGTH]
    return [*marked(step), *plain(unmarked(step))]


def marked(step: str) -> list[Calculation]:
    """The calculations of the marks `<<48/2=24>>`."""
    found = []
    for match in MARK.finditer(step[:MAX_LENGTH]):
        left, right = whole_expression(match[1]), whole_expression(match[2])
        if isinstance(right, Number):
            found.append(Calculation(match[0], left, right, right, marked=True))
        elif right is not None and (value := _signed(right)) is not None:
            found.append(Calculation(match[0], left, value, value, marked=True))
    return found


def plain(text: str) -> list[Calculation]:
    """The calculations around each "=" of a text without marks."""
    pieces = list(pieces_of(text[:MAX_LENGTH]))
    equals = [index for index, piece in enumerate(pieces) if piece.kind == "equals"]
    found = []
    for index in equals:
        right = forwards(pieces, index + 1)
        if right is None:
            continue
        left = backwards(pieces, index)
        tree, result = right
        start, at = pieces[max(0, index - 12)].start, pieces[index].start
        said = text[start:at].rpartition("\n")[2] + text[at : at + 24].partition("\n")[0]
        found.append(Calculation(said.strip(), left, tree, result, rough=pieces[index].text == "≈"))
    return found


def numbers(text: str) -> list[Number]:
    """The numbers of a text in digits, but for times of day and ordinals."""
    return [
        piece.token
        for piece in pieces_of(unmarked(text)[:MAX_LENGTH])
        if isinstance(piece.token, Number)
    ]


def _signed(node: Node) -> Number | None:
    """-3 as a number, None for any other tree."""
    if not isinstance(node, Sum) or len(node.terms) != 1:
        return None
    sign, inner = node.terms[0]
    if not isinstance(inner, Number):
        return None
    return Number(sign * inner.value, inner.decimals, inner.percent)


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
    for index, step in enumerate(steps):
        wrong = false_calculation(step)
        if wrong is not None:
            return Verdict(index, f"false arithmetic: {wrong.text} (certain)")
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
