"""What a search for the first wrong step found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The first wrong step of a solution.

    Attributes:
        step: 0-based; None = no wrong step was found, or it cannot be told.
        reason: why, in words for the log; where the rules differ in how far to trust them it ends
            with "(certain)", "(likely)" or "(a guess)".
        all_right: every step was looked at and called right; without it, step None says only that
            nothing was found, or that a judge could not be understood.
        failure: why a judge that was asked gave no verdict, by a name to be counted; "" = it did.
    """

    step: int | None
    reason: str
    all_right: bool = False
    failure: str = ""
