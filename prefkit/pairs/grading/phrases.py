"""A number or a few words at the start of a phrase, and the unit that follows a formula."""

import re
from collections.abc import Iterator

from prefkit.pairs.grading.magnitudes import scale_of
from prefkit.pairs.grading.operations import sign_calculates
from prefkit.pairs.grading.parts import goes_on
from prefkit.pairs.grading.units import PERCENT, added_at, is_unit

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


def known_unit(text: str, place: int) -> str:
    """The unit, the percent sign or the word that multiplies, which follows a formula; else ""."""
    match = _AFTER.match(text, place)
    return f" {match[1]}" if match and is_unit(match[1]) else ""


def multiplier(text: str, place: int) -> str:
    """The words behind a number without which it has another value: million, percent; else ""."""
    match = _AFTER.match(text, place)
    word = match[1].casefold() if match else ""
    return f" {match[1]}" if match and (scale_of(word)[0] != 1 or word in PERCENT) else ""


def tidy(answer: str) -> str | None:
    """Without bold marks and full stops around it; None where nothing is left."""
    answer = answer.strip().strip("*").strip()
    while answer.endswith((".", ";")) and not answer.endswith(".."):
        answer = answer[:-1].rstrip()
    return answer or None
