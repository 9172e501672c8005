"""An answer that was found in a text: where, how surely, and what speaks against it.

A text may take back what it stated: "The answer is 5. Wait, it should be 7."
"""

import re
from dataclasses import dataclass

from prefkit.pairs.grading.compare.grouping import group_key
from prefkit.pairs.grading.find.numbers import numbers_in, tidy
from prefkit.pairs.grading.find.spans import Span, masked, spans_of

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


def paragraph(text: str, index: int, spans: list[Span], answer: str) -> str:
    """The paragraph around a position, where a formula stands in it that is not in the answer."""
    begin = text.rfind("\n\n", 0, index) + 1
    end = text.find("\n\n", index)
    end = len(text) if end < 0 else end
    parts = answer.split(", ")
    others = any(begin <= s.start < end and tidy(s.inner) not in parts for s in spans)
    return text[begin:end].strip() if others and end - begin <= MAX_AGAIN else ""


_CORRECTION = re.compile(
    r"\b(?:wait|oops|wrong|incorrect|correction|mistaken?|mistakenly|error|actually"
    r"|scratch[ \t]+that|should[ \t]+(?:be|have[ \t]+been)|I[ \t]+mean|or[ \t]+rather|instead"
    r"|on[ \t]+second[ \t]+thought|(?:re|double)[ -]?check\w*)\b"
    r"|\b(?:no|sorry)\b(?=[ \t]*[,.:;!?—–-])"
    r"|\bnot[ \t]+(?:right|correct|quite|true)\b|\bnot\b[^.\n]{0,20}\bbut\b",
    re.I,
)
_TAKEN_BACK = re.compile(r"\b(?:wait|oops|wrong|incorrect|scratch[ \t]+that)\b", re.I)
_RESULT = re.compile(r"(?:=|\b(?:is|are|be|get|gives?|have)|:)[ \t$\\(\[{]*\Z", re.I)
_FRONT = 20  # characters before a number that are looked at
_MOST = 9  # other answers that are compared


def corrected_to(text: str, start: int, answer: str) -> tuple[str, ...]:
    """The last numbers and formulas behind a word of correction, but for the answer itself; ()
    where the text comes to the same answer again.

    Args:
        text: a solution.
        start: where the stated answer ends.
        answer: as stated.
    """
    correction = _CORRECTION.search(text, start)
    if correction is None:
        return ()
    rest = text[correction.end() :]
    spans = spans_of(rest)
    indices = [(span.start, span.inner) for span in spans]
    indices += [(match.start(), match[0]) for match in numbers_in(masked(rest, spans))]
    found = [(index, tidy(other) or "") for index, other in sorted(indices)[-_MOST:]]
    if not found:
        return ()
    index, last = found[-1]
    if group_key(last) == group_key(answer) and _RESULT.search(rest[:index][-_FRONT:]):
        return ()
    return tuple(dict.fromkeys(other for _, other in found if other not in ("", answer)))


def is_taken_back(text: str, start: int) -> bool:
    """Whether a word takes the answer back, and no number or formula follows."""
    correction = _TAKEN_BACK.search(text, start)
    return bool(correction) and not re.search(r"[\d$\\]", text[correction.end() :])  # type: ignore[union-attr]
