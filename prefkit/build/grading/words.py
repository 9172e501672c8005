"""Answers that are words, the letter of a choice, or an assignment "x = 5"."""

import re

_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z]")
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s+)?\(?([A-Ha-h])\)?(?:[.:)]\s.*|\s*\).*)?", re.I
)
_BRACKETED_CHOICE = re.compile(r"\(([A-H])\)(?:\s+.*)?")
_ASSIGNMENT = re.compile(
    r"([A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?)\s*(?:=|\\in(?![A-Za-z]))\s*(.+)"
)


def squeezed(text: str) -> str:
    """Without case and spaces, but for the spaces between two digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).casefold()


def text_equal(answer: str, gold: str) -> bool | None:
    """By words or by the letter of a choice; None where the right answer is neither."""
    choice = _BRACKETED_CHOICE.fullmatch(gold) or re.fullmatch(r"([A-H])", gold)
    if choice:
        given = _CHOICE.fullmatch(answer)
        bare = len(gold) == 1 and len(answer.strip()) > 1 and "(" not in answer and given
        if given and not bare:
            return given[1].upper() == choice[1].upper()
        if given:
            return given[1] == choice[1]
        return False if gold.startswith("(") else None
    if _WORDS.fullmatch(gold) or _WORDS.fullmatch(answer):
        return _plain_words(answer) == _plain_words(gold)
    return None


def _plain_words(text: str) -> str:
    text = re.sub(r"[^\w\s+/<>=.-]", "", text.casefold()).replace("-", " ").strip(" .")
    text = re.sub(r"^(?:it is|it's|an|a|the)\s+", "", text)
    return re.sub(r"\s+", " ", text)


def assigned(answer: str, gold: str) -> tuple[str, str] | None:
    """Both without "x =" where only one has it or both name the same; None = they differ."""
    left, right = _ASSIGNMENT.fullmatch(answer), _ASSIGNMENT.fullmatch(gold)
    if left and right:
        if squeezed(left[1]) != squeezed(right[1]):
            return None
        return left[2], right[2]
    if left and not re.search(r"[=<>]|\\[lg]e", gold):
        return left[2], gold
    if right and not re.search(r"[=<>]|\\[lg]e", answer):
        return answer, right[2]
    return answer, gold
