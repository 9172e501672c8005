"""An answer that was found in a text: where, how surely, and what speaks against it."""

from dataclasses import dataclass

from prefkit.pairs.grading.phrases import tidy
from prefkit.pairs.grading.spans import Span

MAX_AGAIN = 1000  # characters of a paragraph that math-verify reads as well


@dataclass(frozen=True)
class Found:
    """An answer and how it was found.

    Attributes:
        answer: as written, without surrounding white space; None = none is stated.
        by: "hash", "tag", "boxed", "stated", "formula", "equals", "number" or "pattern".
        others: other readings; an answer that is wrong where one of these is right is unclear.
        again: the text in which math-verify may look for the answer too, "" where it need not.
        rivals: answers that the text states as well, or corrects this one to. As `others`; and an
            answer that is right where one of these is not is unclear too.
        doubt: "" or a reason of `grader.UNDECIDED`: neither right nor wrong can be said of it.
        is_guess: it is a number that nothing marks as the answer, so it is wrong beside another
            number only.
    """

    answer: str | None
    by: str
    others: tuple[str, ...] = ()
    again: str = ""
    rivals: tuple[str, ...] = ()
    doubt: str = ""
    is_guess: bool = False


def paragraph(text: str, place: int, spans: list[Span], answer: str) -> str:
    """The paragraph around a place, where a formula stands in it that is not in the answer."""
    begin = text.rfind("\n\n", 0, place) + 1
    end = text.find("\n\n", place)
    end = len(text) if end < 0 else end
    parts = answer.split(", ")
    others = any(begin <= s.start < end and tidy(s.inner) not in parts for s in spans)
    return text[begin:end].strip() if others and end - begin <= MAX_AGAIN else ""
