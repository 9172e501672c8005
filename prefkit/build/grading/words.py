"""Answers that are words, the letter of a choice, or a time of day."""

import re

_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z]")
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s+)?\(?([A-Ha-h])\)?(?:[.:)]\s.*|\s*\).*)?", re.I
)
_BRACKETED_CHOICE = re.compile(r"\(([A-H])\)(?:\s+.*)?")
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?:\s*([ap])\.?\s?m\.?)?", re.I)


def squeezed(text: str) -> str:
    """Without case and spaces, but for the spaces between two digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).casefold()


def text_equal(answer: str, gold: str) -> bool | None:
    """By words, by the letter of a choice, or as times; None where the right answer is neither."""
    choice = _BRACKETED_CHOICE.fullmatch(gold) or re.fullmatch(r"([A-H])", gold)
    if choice:
        given = _CHOICE.fullmatch(answer)
        bare = len(gold) == 1 and len(answer.strip()) > 1 and "(" not in answer and given
        if given and not bare:
            return given[1].upper() == choice[1].upper()
        if given:
            return given[1] == choice[1]
        return False if gold.startswith("(") else None
    if (one := _CLOCK.fullmatch(answer)) and (other := _CLOCK.fullmatch(gold)):
        halves = {half.lower() for half in (one[3], other[3]) if half}
        is_time = halves or "0" in (one[2][0], other[2][0])  # else it may be a ratio
        if is_time:
            return len(halves) < 2 and (int(one[1]), one[2]) == (int(other[1]), other[2])
    if _WORDS.fullmatch(gold) or _WORDS.fullmatch(answer):
        return _plain_words(answer) == _plain_words(gold)
    return None


def _plain_words(text: str) -> str:
    text = re.sub(r"[^\w\s+/<>=.-]", "", text.casefold()).replace("-", " ").strip(" .")
    text = re.sub(r"^(?:it is|it's|an|a|the)\s+", "", text)
    return re.sub(r"\s+", " ", text)
