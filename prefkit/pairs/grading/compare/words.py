"""Answers that are words, a time of day, or the letter of a choice."""

import re

from prefkit.pairs.grading.compare.comparison import EQUAL, UNREAD, Comparison, decided
from prefkit.pairs.grading.units import quantity

# Two letters may be a product of unknowns.
_WORDS = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z][A-Za-z' -]*[A-Za-z]|yes|no", re.I)
_NUMBER_WORD = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty"
    r"|half|third|quarter|hundred|thousand|million|once|twice|thrice|double|both|dozen|single|pair"
    r"|couple|infinitely)\b",
    re.I,
)
_NOTHING = re.compile(
    r"\b(?:no|none|not|never|nothing|nobody|nowhere|neither|nil|null|empty|cannot|dne|undefined"
    r"|impossible)\b",
    re.I,
)
_SAME = ({"yes", "true", "correct", "right"}, {"no", "false", "incorrect", "wrong"})
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?:\s*([ap])\.?\s?m\.?)?", re.I)


def squeezed(text: str) -> str:
    """Without case and spaces, but for the spaces between two digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).casefold()


def text_equal(answer: str, gold: str) -> Comparison | None:
    """By the letter of a choice, as times, or by words; None where it is for other rules to say.

    Words beside a number differ from it, unless they name a number, or nothing beside 0. Undecided
    are words beside a formula, and words that may mean the same, see `_may_mean`.
    """
    if found := choices_equal(answer, gold):
        return found
    if (one := _CLOCK.fullmatch(answer)) and (other := _CLOCK.fullmatch(gold)):
        halves = {half.lower() for half in (one[3], other[3]) if half}
        if halves or "0" in (one[2][0], other[2][0]):  # else it may be a ratio
            is_same = (int(one[1]), one[2]) == (int(other[1]), other[2])
            return decided(is_same and len(halves) < 2)
    sides = [text for text in (answer, gold) if _WORDS.fullmatch(text)]
    if sides and _plain(answer) == _plain(gold):
        return EQUAL
    if len(sides) == 2:
        return UNREAD if _may_mean(_plain(answer), _plain(gold)) else decided(False)
    if sides:
        beside = gold if sides == [answer] else answer
        number = quantity(beside)
        is_nothing = number and number.value == 0 and _NOTHING.search(sides[0])
        is_named = is_nothing or _NUMBER_WORD.search(sides[0])
        return decided(False) if any(map(str.isdigit, beside)) and not is_named else UNREAD
    return None


def _may_mean(one: str, other: str) -> bool:
    """Whether different words may say the same: one has all words of the other (on Saturday), but
    for their endings; both say that there is nothing, or name a number; yes and true."""
    sides = [text.split() for text in (one, other)]
    if all(_NOTHING.search(text) for text in (one, other)):
        return True
    if all(_NUMBER_WORD.search(text) for text in (one, other)):
        return True
    if any(all(words[:1] and words[0] in same for words in sides) for same in _SAME):
        return True
    few, many = sorted(sides, key=len)
    return all(any(_alike(word, other) for other in many) for word in few)


def _alike(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return short == long or (len(short) > 2 and long.startswith(short))


def _plain(text: str) -> str:
    text = re.sub(r"[^\w\s+/<>=.-]", "", text.casefold()).replace("-", " ").strip(" .")
    text = re.sub(r"^(?:it is|its)\s+", "", text)
    text = re.sub(r"^(?:an|a|the)\s+", "", text)
    return re.sub(r"\s+", " ", text)


_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s+)?\(?([A-Ha-h])\)?(?:[.:)]\s.*|\s*\).*)?", re.I
)
_BRACKETED = re.compile(r"\(([A-H])\)(?:\s+.*)?")
_SEVERAL = re.compile(r"[A-H]\)?\s*(?:,|&|\band\b|\bor\b)\s*\(?[A-H]\b")
_BESIDE = re.compile(r"(?:\([A-H]\)|[A-H][.:)](?=\s))[\s:]*(?P<value>-?[\w\\$({\[.].*)")


def value_of_choice(text: str) -> str | None:
    """The value beside the letter of a choice: 7 of (B) 7; None = there is no such letter."""
    match = _BESIDE.fullmatch(text)
    return match["value"] if match else None


def names_choice(text: str) -> bool:
    """Whether a text names a choice by its letter: B, (B), (B) 7."""
    return bool(_BRACKETED.fullmatch(text) or re.fullmatch(r"[A-H]", text))


def choices_equal(answer: str, gold: str) -> Comparison | None:
    """By the letter of a choice; None where the right answer is none, or may be a name.

    What names no letter may be the text of the choice, and a letter may be the choice whose value
    is the right answer: both are undecided.
    """
    choice = _BRACKETED.fullmatch(gold) or re.fullmatch(r"([A-H])", gold)
    given = _CHOICE.fullmatch(answer)
    if choice is None:
        return UNREAD if given and quantity(gold) else None
    if given is None:
        return UNREAD if gold.startswith("(") or quantity(answer) else None
    if _SEVERAL.search(answer):
        return UNREAD  # (A) or (B)
    letter = choice[1]
    bare = len(gold) == 1 and len(answer.strip()) > 1 and "(" not in answer
    return decided(given[1] == letter if bare else given[1].upper() == letter.upper())
