r"""A number at the start of a phrase, its unit, and whether it is a part of something larger.

The 3 of (3, 4), the 5 of "5 divided by 2" and the 1 of "1 hour 30 minutes" are no answers. Where a
number is all that was found, the text around it decides whether anything can be said of it.
"""

import re
from collections.abc import Iterator

from prefkit.pairs.grading.units import (
    PERCENT,
    added_at,
    is_unit,
    is_unit_letter,
    scale_of,
    sign_calculates,
    word_calculates,
)

_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+|\d+,\d+|\d+(?:\.\d+)?|\.\d+"
_MIXED = r"\d+[ \t]+\d{1,3}/\d{1,3}"  # 4 2/3
_VALUE = rf"[-−]?[$€£]?[-−]?(?:{_MIXED}|(?:{_DIGITS})(?:/\d+)?)\s?%?"
_NUMBER = re.compile(rf"(?<![\w.])(?<!\d,){_VALUE}(?=(?:[A-Za-z]{{1,2}}[²³]?)?(?![\w]|[.,/]\d))")
# A number that prose may follow: "18 dollars a day" is cut there, "18x + 2" is not.
_LEADING = re.compile(rf"{_VALUE}(?=[.,;:!?]*(?:\s+[A-Za-z(]|\s*$))")
_UNIT = re.compile(
    r"[ \t]+(?:(?:square|cubic|sq\.?|cu\.?)[ \t]+)?[A-Za-z°]+(?:/[A-Za-z]+)?(?:\^\{?[23]\}?|[²³])?"
    r"(?:[ \t]+(?:Fahrenheit|Celsius|[FC]))?(?=[.!]?\s*$)"
)
_LIST = re.compile(r"\s+(?:and|or|to)\b")
_AFTER = re.compile(r"[ \t})\]$\\]{0,6}(\\?%|(?:(?:square|cubic)[ \t]+)?[A-Za-z]+)")


def number_of(phrase: str) -> str | None:
    """The number that a phrase starts with, with a unit that ends it; None = it starts otherwise,
    holds an equation or a list, or goes on with a calculation or a second quantity."""
    phrase = phrase.strip().strip("*_ \t")
    if added := added_at(phrase):
        return None if goes_on(phrase[len(added) :]) else added
    match = _LEADING.match(phrase)
    if match is None or "=" in phrase[match.end() :][:4] or _LIST.match(phrase, match.end()):
        return None
    rest = phrase[match.end() :]
    if sign_calculates(rest) or goes_on(rest):
        return None
    unit = _UNIT.match(phrase, match.end())
    return match[0].rstrip() + (unit[0] if unit else known_unit(phrase, match.end()))


def shortened(phrase: str) -> str | None:
    """The number that a phrase starts with, or the phrase itself, without its full stop."""
    return number_of(phrase) or tidy(phrase.strip().strip("*_ \t"))


def numbers_in(text: str) -> Iterator[re.Match[str]]:
    """The numbers of a text, as written, with their signs of currency and percent."""
    return _NUMBER.finditer(text)


def known_unit(text: str, index: int) -> str:
    """The unit, the percent sign or the word that multiplies, which follows a formula; else ""."""
    match = _AFTER.match(text, index)
    return f" {match[1]}" if match and is_unit(match[1]) else ""


def multiplier(text: str, index: int) -> str:
    """The words behind a number without which it has another value: million, percent; else ""."""
    match = _AFTER.match(text, index)
    word = match[1].casefold() if match else ""
    return f" {match[1]}" if match and (scale_of(word)[0] != 1 or word in PERCENT) else ""


def tidy(answer: str) -> str | None:
    """Without bold marks and full stops around it; None where nothing is left."""
    answer = answer.strip().strip("*").strip()
    while answer.endswith((".", ";")) and not answer.endswith(".."):
        answer = answer[:-1].rstrip()
    return answer or None


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
