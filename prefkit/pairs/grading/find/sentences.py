r"""Answers that sentences state, and what comes last where none is stated.

"A: 18", "the answer is 18 dollars a day", and without such words the last formula, number or
result. Every rule passes over the text once.
"""

import math
import re
from collections import deque
from typing import NamedTuple

from prefkit.pairs.grading.find.found import Found, corrected_to, is_taken_back, paragraph
from prefkit.pairs.grading.find.numbers import (
    follows_quantity,
    goes_on,
    is_part,
    known_unit,
    multiplier,
    number_of,
    numbers_in,
    shortened,
    tidy,
)
from prefkit.pairs.grading.find.spans import Span, joined_from, joined_to, masked, spans_of

_LINE = re.compile(
    r"^[ \t>*_#-]*(?:A[ \t]*:|(?:(?:the[ \t]+)?final[ \t]+answer|answer|ans)[ \t*_]*(?:[:=]|\n))"
    r"[ \t*_]*",
    re.I | re.M,
)
_SENTENCE = re.compile(
    r"(?<!/)(?<!per )(?<!\bif )(?<!\bif the )\b(?:answer|correct[ \t]+(?:option|choice))\b"
    r"(?:[^\n.:=]{0,60}?[ \t](?:is|are)|[ \t]*[:=])[ \t:*_]*",
    re.I,
)
_NAMED = re.compile(r"(?:\s(?:is|are|equals|be)|=)\s+(?=\S)")
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"')*]*(?:\s[A-Z#<\[]|$))|\bI hope\b")
_LEAD = re.compile(r"[\s*_:\"'“]*")
_LIST = re.compile(r"[,;]|\b(?:and|or)\b")
_RESULT = re.compile(r"=[ \t]*([^\s=,;]+)")
_GOES_ON = re.compile(r"[.!?;]\s.*\d")
_GIVES_UP = re.compile(
    r"\b(?:(?:cannot|can't|can not|could not|couldn't)[ \t]+(?:be[ \t]+)?"
    r"(?:determin|solv|answer|find|found)"
    r"|(?:do not|don't)[ \t]+know|not[ \t]+enough[ \t]+information|unable[ \t]+to)",
    re.I,
)
_NEAR = 80  # characters around a last number in which a text may give up
_SMALL = re.compile(r"\d|1\d")  # numbers whose factorial may be meant: 5!
PART, TAKEN_BACK = "part", "corrected"  # of `grader.UNDECIDED`


class _Value(NamedTuple):
    """What a phrase states, where that ends in the text, and how surely (see `Found`)."""

    answer: str | None
    end: int
    is_part: bool = False
    is_guess: bool = False


def stated(text: str) -> Found | None:
    """ "A: 18" at the start of a line, or "the answer is 18"; the later one of the two."""
    ends = [m.end() for pattern in (_LINE, _SENTENCE) for m in deque(pattern.finditer(text), 1)]
    if not ends:
        return None
    spans, start = spans_of(text), _LEAD.match(text, max(ends)).end()  # type: ignore[union-attr]
    value = _value(text, spans, start)
    answer = value.answer
    if answer is None:
        return None
    after = last(text[start:])
    others = [after.answer] if after and after.answer and after.answer != answer else []
    if text.startswith("!", value.end) and _SMALL.fullmatch(answer):
        others.append(str(math.factorial(int(answer))))
    return Found(
        answer,
        "stated",
        tuple(others),
        paragraph(text, start, spans, answer),
        corrected_to(text, value.end, answer),
        _doubt(text, value.end, value.is_part),
        value.is_guess,
    )


def stated_in(phrase: str) -> Found:
    """What a phrase of one line states as a whole."""
    value = _value(phrase, spans_of(phrase), 0)
    doubt = PART if value.is_part else ""
    return Found(value.answer, "tag", doubt=doubt, is_guess=value.is_guess)


def _doubt(text: str, end: int, is_part: bool) -> str:
    return PART if is_part else TAKEN_BACK if is_taken_back(text, end) else ""


def _value(text: str, spans: list[Span], start: int) -> _Value:
    """What a phrase that starts at `start` states: formulas, a number with its unit, or words."""
    index = next((n for n, span in enumerate(spans) if span.end > start), len(spans))
    if index < len(spans) and spans[index].start == start:
        return _formulas(text, spans, index, joined_from(text, spans, index))
    end = text.find("\n", start)
    line = text[start : len(text) if end < 0 else end]
    mask = masked(text[start:], [_moved(s, start) for s in spans[index:]], "x")[: len(line)]
    stop = _SENTENCE_END.search(mask)
    line, mask = (line[: stop.start()], mask[: stop.start()]) if stop else (line, mask)
    number = number_of(line)
    if number:
        return _Value(number, start + len(number))
    named = list(_NAMED.finditer(mask))
    if _is_list(named, mask):
        return _Value(tidy(line), start + len(line))
    if named:
        return _value(text, spans, start + named[-1].end())
    inside = [n for n, span in enumerate(spans) if start < span.start < start + len(line)]
    if inside and joined_from(text, spans, inside[0]) == inside[-1]:
        return _formulas(text, spans, inside[0], inside[-1])
    numbers = list(numbers_in(mask))
    if len(numbers) == 1 and _is_sentence(mask):
        begin = numbers[0].start()
        answer = number_of(line[begin:]) or numbers[0][0]
        is_a_part = is_part(line, begin, numbers[0].end())
        return _Value(answer, start + len(line), is_a_part, is_guess=True)
    return _Value(shortened(line), start + len(line))


def _is_list(named: list[re.Match[str]], phrase: str) -> bool:
    """Whether a phrase is a list of equations: x = 5 or x = 7."""
    equals = [match for match in named if "=" in match[0]]
    return len(equals) > 1 and bool(_LIST.search(phrase, equals[0].end(), equals[-1].start()))


def _is_sentence(text: str) -> bool:
    """Whether it is more than a number and a few words."""
    return len(text.split(maxsplit=5)) > 4


def _moved(span: Span, by: int) -> Span:
    return Span(max(0, span.start - by), span.end - by, span.inner)


def _formulas(text: str, spans: list[Span], first: int, last: int) -> _Value:
    end = spans[last].end
    return _Value(_joined(text, spans, first, last), end, goes_on(text[end : end + 120]))


def _joined(text: str, spans: list[Span], first: int, last: int) -> str | None:
    inner = ", ".join(filter(None, (tidy(span.inner) for span in spans[first : last + 1])))
    return tidy(inner + known_unit(text, spans[last].end)) if inner else None


def last(text: str) -> Found | None:
    """The formula, the number, or the result of a calculation that comes last."""
    spans = spans_of(text, bare=True)
    number = next(iter(deque(numbers_in(masked(text, spans)), maxlen=1)), None)
    if spans and (number is None or number.end() <= spans[-1].end):
        return _last_formula(text, spans)
    before, equals, after = masked(text, spans).rstrip().rpartition("\n")[2].rpartition("=")
    is_result = before.strip()[-1:] not in tuple("<>!:") and not _GOES_ON.search(after)
    is_result = is_result and not _is_sentence(after)
    if equals and before.strip() and is_result and (answer := shortened(after)):
        results = tuple(r for r in _RESULT.findall(before + equals) if _LIST.search(before))
        again = paragraph(text, len(text.rstrip()) - 1, spans, answer)
        return Found(answer, "equals", results[-9:], again, is_guess=bool(results))
    return last_number(text)


def _last_formula(text: str, spans: list[Span]) -> Found | None:
    end = spans[-1].end
    first = joined_to(text, spans, len(spans) - 1)
    value = _formulas(text, spans, first, len(spans) - 1)
    if value.answer is None:
        return None
    is_a_part = value.is_part or follows_quantity(text[: spans[first].start])
    return Found(
        value.answer,
        "formula",
        _beside(text, spans, value.answer),
        paragraph(text, spans[-1].start, spans, value.answer),
        doubt=_doubt(text, end, is_a_part),
    )


def _beside(text: str, spans: list[Span], answer: str) -> tuple[str, ...]:
    """The other formulas of the last sentence."""
    before = masked(text, spans)[: spans[-1].start]
    begin = max(before.rfind("\n"), before.rfind(". "))
    parts = answer.split(", ")
    inner = [tidy(span.inner) for span in spans[-9:] if span.start > begin]
    return tuple(part for part in inner if part and part not in parts)


def last_number(text: str) -> Found | None:
    """The number that comes last; in doubt where it is a part of something larger."""
    matches = deque(numbers_in(text), maxlen=1)
    if not matches:
        return None
    index, end = matches[0].span()
    others = deque(numbers_in(text[text.rfind("\n", 0, index) + 1 :]), maxlen=9)
    readings = tuple(match[0] for match in others)[:-1]
    if _GIVES_UP.search(text, max(0, index - _NEAR), end + _NEAR):
        return None
    answer = matches[0][0].strip() + (multiplier(text, end) or known_unit(text, end))
    return Found(
        answer,
        "number",
        readings,
        paragraph(text, index, spans_of(text), answer),
        doubt=_doubt(text, end, is_part(text, index, index + len(matches[0][0].rstrip()))),
        is_guess=True,
    )
