"""From an answer that was found to a verdict, or to the reason why there is none.

Where the answer stands is not always certain. What `answers.find` finds without a mark is looked
for by math-verify too: a formula has to be right in both readings or in none, and no answer is
wrong that is right in the other reading. Nor is one a clear mistake where another number of its
line, or another box, is right.
"""

from prefkit.pairs.grading.bounds import bounded, sane
from prefkit.pairs.grading.equality import compare
from prefkit.pairs.grading.formulas import found_in, read, readable, verified
from prefkit.pairs.grading.found import Found
from prefkit.pairs.grading.normal_form import normal
from prefkit.pairs.grading.units import quantity


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
