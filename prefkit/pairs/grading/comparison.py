"""What comes of comparing two answers: equal, different, or undecided and why."""

from typing import NamedTuple


class Comparison(NamedTuple):
    """Whether two answers are equal; None = undecided, and then why.

    `why`: "refused" (too long or too large to be looked at), "unread" (words or a formula that
    cannot be read, or not beside the other answer), "disagree" (math-verify says one thing, a rule
    of this project another), "rounded" (it rounds to the right answer, but has other digits),
    "" = decided.
    """

    equal: bool | None
    why: str = ""


EQUAL, DIFFERENT = Comparison(True), Comparison(False)
REFUSED, UNREAD = Comparison(None, "refused"), Comparison(None, "unread")
DISAGREE, ROUNDED = Comparison(None, "disagree"), Comparison(None, "rounded")


def decided(is_equal: bool) -> Comparison:
    return EQUAL if is_equal else DIFFERENT
