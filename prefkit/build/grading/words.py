"""Answers that are words, the letter of a choice, or a time of day."""

import re

from prefkit.build.grading.comparison import UNREAD, Comparison, decided

# Two letters may be a product of unknowns.
_WORDS = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z][A-Za-z' -]*[A-Za-z]|yes|no", re.I)
_NUMBER_WORD = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty"
    r"|half|third|quarter|hundred|thousand|million|once|twice|double|both|dozen)\b",
    re.I,
)
_NOTHING = re.compile(r"no\b.*|none\b.*|not\b.*|dne|undefined|impossible|does not exist", re.I)
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s+)?\(?([A-Ha-h])\)?(?:[.:)]\s.*|\s*\).*)?", re.I
)
_BRACKETED_CHOICE = re.compile(r"\(([A-H])\)(?:\s+.*)?")
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?:\s*([ap])\.?\s?m\.?)?", re.I)


def squeezed(text: str) -> str:
    """Without case and spaces, but for the spaces between two digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).casefold()


def text_equal(answer: str, gold: str) -> Comparison | None:
    """By the letter of a choice, as times, or by words; None where it is for other rules to say.

    Words beside a number differ from it, unless they name a number; words beside a formula, and
    two ways of saying that there is no answer, are undecided.
    """
    choice = _BRACKETED_CHOICE.fullmatch(gold) or re.fullmatch(r"([A-H])", gold)
    if choice:
        return _choice_equal(answer, gold, choice[1])
    if (one := _CLOCK.fullmatch(answer)) and (other := _CLOCK.fullmatch(gold)):
        halves = {half.lower() for half in (one[3], other[3]) if half}
        if halves or "0" in (one[2][0], other[2][0]):  # else it may be a ratio
            is_same = (int(one[1]), one[2]) == (int(other[1]), other[2])
            return decided(is_same and len(halves) < 2)
    sides = [text for text in (answer, gold) if _WORDS.fullmatch(text)]
    if len(sides) == 2:
        is_same = _plain(answer) == _plain(gold)
        both_nothing = all(_NOTHING.fullmatch(text) for text in sides)
        return UNREAD if both_nothing and not is_same else decided(is_same)
    if sides and _plain(answer) != _plain(gold):
        beside = gold if sides == [answer] else answer
        is_number = any(c.isdigit() for c in beside) and not _NUMBER_WORD.search(sides[0])
        return decided(False) if is_number else UNREAD
    return decided(True) if sides else None


def _choice_equal(answer: str, gold: str, letter: str) -> Comparison | None:
    """A right answer (D) or D; what names no letter may be the text of the choice."""
    given = _CHOICE.fullmatch(answer)
    if given is None:
        return UNREAD if gold.startswith("(") else None
    bare = len(gold) == 1 and len(answer.strip()) > 1 and "(" not in answer
    return decided(given[1] == letter if bare else given[1].upper() == letter.upper())


def _plain(text: str) -> str:
    text = re.sub(r"[^\w\s+/<>=.-]", "", text.casefold()).replace("-", " ").strip(" .")
    text = re.sub(r"^(?:it is|it's|an|a|the)\s+", "", text)
    return re.sub(r"\s+", " ", text)
