"""Answers to a question with choices: their letters, and the values that stand beside them."""

import re

from prefkit.pairs.grading.comparison import UNREAD, Comparison, decided
from prefkit.pairs.grading.units import quantity

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
