"""Does a text take back the answer that it stated? "The answer is 5. Wait, it should be 7." """

import re

from prefkit.build.grading.phrases import numbers_in, tidy
from prefkit.build.grading.spans import masked, spans_of

_CORRECTION = re.compile(
    r"\b(?:wait|oops|wrong|incorrect|sorry|apolog\w+|correction|mistaken?|mistakenly|actually"
    r"|scratch[ \t]+that|should[ \t]+(?:be|have[ \t]+been)|I[ \t]+mean|or[ \t]+rather|instead"
    r"|on[ \t]+second[ \t]+thought|(?:re|double)[ -]?check\w*)\b|\bno\b(?=[ \t]*[,.:;!?—–-])"
    r"|\bnot[ \t]+(?=[$\d\\])",
    re.I,
)
_TAKEN_BACK = re.compile(r"\b(?:wait|oops|wrong|incorrect|scratch[ \t]+that)\b", re.I)
_MOST = 9  # other answers that are compared


def corrected_to(text: str, start: int, answer: str) -> tuple[str, ...]:
    """The last numbers and formulas behind a word of correction, but for the answer itself.

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
    inner = [tidy(span.inner) for span in spans]
    plain = [match[0].strip() for match in numbers_in(masked(rest, spans))]
    found = dict.fromkeys(other for other in [*inner, *plain] if other and other != answer)
    return tuple(found)[-_MOST:]


def is_taken_back(text: str, start: int) -> bool:
    """Whether a word takes the answer back, and no number or formula follows."""
    correction = _TAKEN_BACK.search(text, start)
    return bool(correction) and not re.search(r"[\d$\\]", text[correction.end() :])  # type: ignore[union-attr]
