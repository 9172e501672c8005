r"""Is a number a part of something larger? Of a power, a tuple, a calculation, two quantities.

The 3 of (3, 4), the 5 of "5 divided by 2" and the 1 of "1 hour 30 minutes" are no answers. Where a
number is all that was found, what stands around it decides whether anything can be said of it.
"""

import re

from prefkit.pairs.grading.operations import sign_calculates, word_calculates
from prefkit.pairs.grading.units import is_unit, is_unit_letter

_SECOND = re.compile(
    r"[ \t]*(?P<unit>(?:(?:square|cubic|sq\.?|cu\.?)[ \t]+)?[A-Za-z]+\.?)"
    r"[ \t]*(?P<joint>,?[ \t]*\b(?:and|or)\b|[,&])?[ \t]*[-−]?\\?[$€£]?\d"
)
_CALCULATES = re.compile(
    r"\b(?:times|plus|minus|negative|than|mod|modulo|power|root|divided[ \t]+by|multiplied[ \t]+by"
    r"|squared|cubed|(?:half|third|quarter|out|root|square|cube|factor|multiple|power|\d)[ \t]+of"
    r"|\d[ \t]+over|\d[ \t]*[xX])(?:[ \t]+(?:the|a))?[ \t]+$"
    r"|(?:[(\[{+*/√×÷·⋅<>≤≥≠]|[<>!]=|[\d)\]}][ \t]*[-−–]|\b[A-Za-z][ \t]*[-−–])[ \t]*$"
    r"|[\^_\\|]$|\w[-−–]$"
)
_LISTED = re.compile(r"\d[ \t]*(?:[,:]|,?[ \t]*\b(?:and|or|to)\b)[ \t]*$")
_QUANTITY = re.compile(r"\d[ \t]*([A-Za-z]+)[ \t]*(,?[ \t]*\b(?:and|or)\b|,)?[ \t]+$")
_LETTERS = re.compile(r"[A-Za-z]{1,2}(?![A-Za-z])")
_NO_UNKNOWN = ("st", "nd", "rd", "th", "am", "pm")  # 5th, 5pm
_MARKS = re.compile(r"[*_]{1,3}$")
_FRONT, _BACK = 60, 120  # characters around a number that are looked at


def goes_on(rest: str) -> bool:
    """Whether words behind a number calculate with it, or add a second quantity to it.

    Args:
        rest: the text behind the number or formula, its unit included.
    """
    if word_calculates(rest):
        return True
    second = _SECOND.match(rest)
    if second is None:
        return False
    is_joined = second["unit"] in ("and", "or") or second["joint"]
    return bool(is_joined) or is_unit(second["unit"]) or is_unit_letter(second["unit"])


def is_part(text: str, start: int, end: int) -> bool:
    """Whether the number at `text[start:end]` is a part of something larger."""
    before = text[max(0, start - _FRONT) : start].rpartition("\n")[2]
    after = text[end : end + _BACK].partition("\n")[0]
    before = before.removesuffix("\\") if text[start] == "$" else before  # an escaped sign
    marks = _MARKS.search(before)
    if marks and after.startswith(marks[0]):  # bold: **12**
        before, after = before[: marks.start()], after[len(marks[0]) :]
    letters = _LETTERS.match(after)
    is_unknown = letters and letters[0] not in _NO_UNKNOWN and not is_unit_letter(letters[0])
    if is_unknown or sign_calculates(after) or goes_on(after):
        return True
    if before.strip() in ("-", "*", "+", ">"):  # a line of a list in Markdown
        return False
    return bool(_CALCULATES.search(before) or _LISTED.search(before)) or follows_quantity(before)


def follows_quantity(before: str) -> bool:
    """Whether a number and its unit, or a number, a word and "and", end a text: 1 hour …"""
    quantity = _QUANTITY.search(before[-_FRONT:].replace("$", ""))
    if quantity is None:
        return False
    is_joined = (quantity[2] or ",").strip(", \t") != ""
    return is_joined or is_unit(quantity[1]) or is_unit_letter(quantity[1])
