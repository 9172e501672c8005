r"""Where a solution states its answer.

A solution is prose; its answer is a few characters of it. The places looked at, in this order:
`#### 72` (GSM8K), `\boxed{…}` (MATH), a line `A: 18` or `Answer: 18` or a sentence "the answer is
…", then whatever comes last: a formula, a number, or what follows "=". Every rule passes over the
text once, so a megabyte of digits or braces costs milliseconds.
"""

import re
from collections import deque
from dataclasses import dataclass, replace

from prefkit.build.grading.boxes import last_boxes
from prefkit.build.grading.normal_form import unescaped
from prefkit.build.grading.phrases import known_unit, number_of, numbers_in, shortened, tidy
from prefkit.build.grading.spans import Span, joined_from, joined_to, masked, spans_of
from prefkit.errors import ConfigError

WAYS = ("auto", "boxed", "hash", "last_number")
MAX_TEXT = 100_000  # characters at the end of a solution in which "auto" looks
MAX_AGAIN = 1000  # characters of a paragraph that math-verify reads as well

_HASH = re.compile(r"####[ \t]*([^\n]*)")
_LINE = re.compile(
    r"^[ \t>*_#-]*(?:A[ \t]*:|(?:(?:the[ \t]+)?final[ \t]+answer|answer|ans)[ \t*_]*(?:[:=]|\n))"
    r"[ \t*_]*",
    re.I | re.M,
)
_SENTENCE = re.compile(
    r"\b(?:answer|correct[ \t]+(?:option|choice))\b"
    r"(?:[^\n.:=]{0,60}?[ \t](?:is|are)|[ \t]*[:=])[ \t:*_]*",
    re.I,
)
_FINAL = re.compile(r"\bfinal[ \t]+answer[ \t]+is\b[ \t:*_]*(?=[$\d\\-])", re.I)
_NAMED = re.compile(r"(?:\s(?:is|are|equals|be)|=)\s+(?=\S)")
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"')*]*(?:\s[A-Z#<\[]|$))|\bI hope\b")
_LEAD = re.compile(r"[\s*_:\"'“]*")
_DROPPED = re.compile(r"<<[^<>\n]*>>|\[asy\](?:[^\[]|\[(?!/?asy\]))*\[/asy\]")


@dataclass(frozen=True)
class Found:
    """An answer and how it was found.

    Attributes:
        answer: as written, without surrounding white space; None = none is stated.
        by: "hash", "boxed", "stated", "formula", "equals", "number" or "pattern".
        others: other readings; an answer that is wrong where one of these is right is unclear.
        again: the text in which math-verify may look for the answer too, "" where it need not.
    """

    answer: str | None
    by: str
    others: tuple[str, ...] = ()
    again: str = ""


def check_way(how: str) -> None:
    """Raises ConfigError for a way that is none of `WAYS` and no `regex:PATTERN` that compiles."""
    if how in WAYS:
        return
    if not how.startswith("regex:") or how == "regex:":
        raise ConfigError(
            f"answer is {how!r}. Choose one of: {', '.join(WAYS)}, regex:PATTERN (the first group "
            "of its last match is the answer)."
        )
    try:
        re.compile(how.removeprefix("regex:"))
    except re.error as error:
        raise ConfigError(
            f"answer is {how!r}, whose pattern is not a regular expression: {error}."
        ) from None


def final_answer(text: str, how: str = "auto") -> str | None:
    """The answer that a solution states; see `find`."""
    return find(text, how).answer


def find(text: str, how: str = "auto") -> Found:
    r"""The answer that a solution states, and how it was found.

    Args:
        text: a solution, without thoughts (`prefkit.thoughts.spoken`). Of one with more than
            `MAX_TEXT` characters the end is read.
        how: auto = the rules above in their order; boxed, hash, last_number = that rule alone;
            regex:PATTERN = the first group (or all) of the pattern's last match. A pattern of a
            user can take for ever: run it where it can be killed, as `Grader` does.

    Raises:
        ConfigError: `how` is none of these.
    """
    check_way(how)
    if how.startswith("regex:"):
        return Found(_by_pattern(text, how.removeprefix("regex:")), "pattern")
    if how != "auto":
        rule = {"boxed": _boxed, "hash": _hash, "last_number": _last_number}[how]
        return rule(text) or Found(None, how)
    text = unescaped(_DROPPED.sub("", text[-MAX_TEXT:]))
    for rule in (_hash, _boxed, _stated, _last):
        found = rule(text)
        if found:
            return found
    return Found(None, "auto")


def _by_pattern(text: str, pattern: str) -> str | None:
    matches = deque(re.finditer(pattern, text), maxlen=1)
    if not matches:
        return None
    match = matches[0]
    return ((match[1] if match.re.groups else match[0]) or "").strip() or None


def _hash(text: str) -> Found | None:
    found = _HASH.findall(text)
    answer = tidy(found[-1]) if found else None
    return Found(answer, "hash") if answer else None


def _boxed(text: str) -> Found | None:
    r"""The box, or the boxes, at the end. A last box that is empty or not closed is no answer."""
    boxes = last_boxes(text)
    if not boxes:
        return None
    contents = [tidy(box.content or "") for box in boxes]
    last = contents[-1]
    if last is None:
        return Found(None, "boxed")
    unit = known_unit(text, boxes[-1].end)
    final = _FINAL.search(text, boxes[-1].end)
    if final and (stated := _stated(text[final.start() :])) and stated.answer != last:
        return replace(stated, others=(last + unit,))
    if len(boxes) == 1:
        return Found(last + unit, "boxed")
    return Found(", ".join(filter(None, contents)) + unit, "boxed", (last,))


def _stated(text: str) -> Found | None:
    """ "A: 18" at the start of a line, or "the answer is 18"; the later one of the two."""
    ends = [m.end() for pattern in (_LINE, _SENTENCE) for m in deque(pattern.finditer(text), 1)]
    if not ends:
        return None
    spans, start = spans_of(text), _LEAD.match(text, max(ends)).end()  # type: ignore[union-attr]
    answer = _value(text, spans, start)
    if answer is None:
        return None
    last = _last(text[start:])
    others = (last.answer,) if last and last.answer and last.answer != answer else ()
    return Found(answer, "stated", others, _again(text, start, spans, answer))


def _value(text: str, spans: list[Span], start: int) -> str | None:
    """What a phrase that starts at `start` states: formulas, a number with its unit, or words."""
    place = next((n for n, span in enumerate(spans) if span.end > start), len(spans))
    if place < len(spans) and spans[place].start == start:
        return _joined(text, spans, place, joined_from(text, spans, place))
    end = text.find("\n", start)
    line = text[start : len(text) if end < 0 else end]
    mask = masked(text[start:], [_moved(s, start) for s in spans[place:]], "x")[: len(line)]
    stop = _SENTENCE_END.search(mask)
    line, mask = (line[: stop.start()], mask[: stop.start()]) if stop else (line, mask)
    number = number_of(line)
    if number:
        return number
    named = deque(_NAMED.finditer(mask), maxlen=1)
    if named:
        return _value(text, spans, start + named[0].end())
    inside = [n for n, span in enumerate(spans) if start < span.start < start + len(line)]
    if inside and joined_from(text, spans, inside[0]) == inside[-1]:
        return _joined(text, spans, inside[0], inside[-1])
    numbers = list(numbers_in(mask))
    if len(numbers) == 1 and _is_sentence(mask):
        return number_of(line[numbers[0].start() :]) or numbers[0][0]
    return shortened(line)


def _is_sentence(text: str) -> bool:
    """Whether it is more than a number and a few words."""
    return len(text.split(maxsplit=5)) > 4


def _moved(span: Span, by: int) -> Span:
    return Span(max(0, span.start - by), span.end - by, span.inner)


def _joined(text: str, spans: list[Span], first: int, last: int) -> str | None:
    inner = ", ".join(filter(None, (tidy(span.inner) for span in spans[first : last + 1])))
    return tidy(inner + known_unit(text, spans[last].end)) if inner else None


def _last(text: str) -> Found | None:
    """The formula, the number, or the result of a calculation that comes last."""
    spans = spans_of(text, bare=True)
    number = next(iter(deque(numbers_in(masked(text, spans)), maxlen=1)), None)
    if spans and (number is None or number.end() <= spans[-1].end):
        answer = _joined(text, spans, joined_to(text, spans, len(spans) - 1), len(spans) - 1)
        if answer is None:
            return None
        others = _beside(text, spans, answer)
        return Found(answer, "formula", others, _again(text, spans[-1].start, spans, answer))
    before, equals, after = masked(text, spans).rstrip().rpartition("\n")[2].rpartition("=")
    if equals and before.strip() and not _is_sentence(after) and (answer := shortened(after)):
        return Found(answer, "equals", (), _again(text, len(text.rstrip()) - 1, spans, answer))
    return _last_number(text)


def _beside(text: str, spans: list[Span], answer: str) -> tuple[str, ...]:
    """The other formulas of the last sentence."""
    before = masked(text, spans)[: spans[-1].start]
    begin = max(before.rfind("\n"), before.rfind(". "))
    parts = answer.split(", ")
    inner = [tidy(span.inner) for span in spans[-9:] if span.start > begin]
    return tuple(part for part in inner if part and part not in parts)


def _last_number(text: str) -> Found | None:
    matches = deque(numbers_in(text), maxlen=1)
    if not matches:
        return None
    place = matches[0].start()
    others = deque(numbers_in(text[text.rfind("\n", 0, place) + 1 :]), maxlen=9)
    readings, answer = tuple(match[0] for match in others)[:-1], matches[0][0].strip()
    return Found(answer, "number", readings, _again(text, place, spans_of(text), answer))


def _again(text: str, place: int, spans: list[Span], answer: str) -> str:
    """The paragraph around a place, where a formula stands in it that is not in the answer."""
    begin = text.rfind("\n\n", 0, place) + 1
    end = text.find("\n\n", place)
    end = len(text) if end < 0 else end
    parts = answer.split(", ")
    others = any(begin <= s.start < end and tidy(s.inner) not in parts for s in spans)
    return text[begin:end].strip() if others and end - begin <= MAX_AGAIN else ""
