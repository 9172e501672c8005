"""From an answer that was found to a verdict, or to the reason why there is none.

Where the answer stands is not always certain. What `answers.find` finds without a mark is looked
for by math-verify too: a formula has to be right in both readings or in none, and no answer is
wrong that is right in the other reading. Nor is one a clear mistake where another number of its
line, or another box, is right.
"""

from dataclasses import dataclass

from prefkit.pairs.grading.compare.comparison import bounded, sane
from prefkit.pairs.grading.compare.equality import compare
from prefkit.pairs.grading.compare.formulas import found_in, read, readable, verified
from prefkit.pairs.grading.compare.normal_form import normal
from prefkit.pairs.grading.find.found import Found
from prefkit.pairs.grading.units import quantity

# Why a verdict could not be had: `Grade.how` → as the manifest counts it.
UNDECIDED = {
    "none": "no answer found",
    "thought": "the thought does not end",
    "unclear": "several answers, one of them right",
    "part": "a number that is a part of the answer, or may be",
    "corrected": "an answer that is taken back",
    "rounded": "a number that rounds to the right one",
    "disagree": "prefkit and math-verify disagree",
    "unread": "words or a formula that cannot be read",
    "refused": "too long or too large to be compared",
    "timeout": "grading ended in timeout",
    "error": "grading ended in error",
}


@dataclass(frozen=True)
class Grade:
    """The verdict on one solution.

    Attributes:
        correct: the answer equals the right one. False whenever that could not be found out.
        answer: what the solution states, None where it states nothing (or the pattern that finds
            it was stopped).
        how: "exact" (the same characters), "integer" (two plain integers), "function" (decided by
            the grading function), or why it is undecided, one of `UNDECIDED`.
        note: a word for the log where `how` does not say it all (the exception's text), else "".
    """

    correct: bool
    answer: str | None
    how: str
    note: str = ""

    @property
    def decided(self) -> bool:
        """Whether right or wrong was found out."""
        return self.how not in UNDECIDED


def verdict_on(found: Found, gold: str) -> tuple[bool, str]:
    """(whether the answer is right, "function" or a reason of `grader.UNDECIDED`).

    Args:
        found: with an answer.
        gold: the right answer.
    """
    is_right, how = _by_meaning(found, gold)
    if how == "function" and found.doubt:
        return False, found.doubt
    if is_right and not all(compare(rival, gold).equal for rival in found.rivals):
        return False, "unclear"
    return is_right, how


def _by_meaning(found: Found, gold: str) -> tuple[bool, str]:
    is_equal, why = compare(found.answer or "", gold)
    again = second_reading(found, gold) if found.again else None
    if is_equal:
        is_contradicted = again is False and found.by == "formula"
        return (False, "disagree") if is_contradicted else (True, "function")
    if again:
        return False, "disagree"
    if any(compare(other, gold).equal for other in (*found.others, *found.rivals)):
        return False, "unclear"
    if why:
        return False, why
    return False, "part" if not _is_comparable(found, gold) else "function"


def _is_comparable(found: Found, gold: str) -> bool:
    """Whether what was found can be called wrong: a number that nothing marks beside a number
    only, and words behind ####, which may be a heading, beside words only."""
    numbers = [quantity(normal(text)) is not None for text in (found.answer or "", gold)]
    if found.is_guess:
        return all(numbers)
    return found.by != "hash" or numbers != [False, True] or "\\" in (found.answer or "")


def second_reading(found: Found, gold: str) -> bool | None:
    """Whether the answer that math-verify finds in the text is the right one; None = it finds none
    or the same one, cannot read the right answer, or the text is out of bounds."""
    text, stated, gold = found.again, normal(found.answer or ""), normal(gold)
    if not (bounded(text) and readable(text) and sane(gold)):
        return None
    answer, right = found_in(text), read(gold)
    if not (answer and right) or (sane(stated) and answer == read(stated)):
        return None
    return verified(right, answer)
