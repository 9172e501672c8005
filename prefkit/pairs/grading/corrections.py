"""Does a text take back the answer that it stated? "The answer is 5. Wait, it should be 7." """

import re

from prefkit.pairs.grading.grouping import group_key
from prefkit.pairs.grading.phrases import numbers_in, tidy
from prefkit.pairs.grading.spans import masked, spans_of

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
    places = [(span.start, span.inner) for span in spans]
    places += [(match.start(), match[0]) for match in numbers_in(masked(rest, spans))]
    found = [(place, tidy(other) or "") for place, other in sorted(places)[-_MOST:]]
    if not found:
        return ()
    place, last = found[-1]
    if group_key(last) == group_key(answer) and _RESULT.search(rest[:place][-_FRONT:]):
        return ()
    return tuple(dict.fromkeys(other for _, other in found if other not in ("", answer)))


def is_taken_back(text: str, start: int) -> bool:
    """Whether a word takes the answer back, and no number or formula follows."""
    correction = _TAKEN_BACK.search(text, start)
    return bool(correction) and not re.search(r"[\d$\\]", text[correction.end() :])  # type: ignore[union-attr]
