"""From an answer that was found to a verdict, or to the reason why there is none.

Where the answer stands is not always certain. What `answers.find` finds without a mark is looked
for by math-verify too: a formula has to be right in both readings or in none, and no answer is
wrong that is right in the other reading. Nor is one a clear mistake where another number of its
line, or another box, is right.
"""

from prefkit.build.grading.answers import Found
from prefkit.build.grading.bounds import bounded, sane
from prefkit.build.grading.equality import compare
from prefkit.build.grading.formulas import found_in, read, readable, verified
from prefkit.build.grading.normal_form import normal


def verdict_on(found: Found, gold: str) -> tuple[bool, str]:
    """(whether the answer is right, "function" or a reason of `grader.UNDECIDED`).

    Args:
        found: with an answer.
        gold: the right answer.
    """
    is_equal, why = compare(found.answer or "", gold)
    again = second_reading(found, gold) if found.again else None
    if is_equal:
        is_contradicted = again is False and found.by == "formula"
        return (False, "disagree") if is_contradicted else (True, "function")
    if again:
        return False, "disagree"
    if any(compare(other, gold).equal for other in found.others):
        return False, "unclear"
    return False, why or "function"


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
