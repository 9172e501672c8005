r"""Where the formulas of a text are: $…$, $$…$$, \(…\), \[…\] and \boxed{…}.

One pass over the text; money is left alone.
"""

import re
from dataclasses import dataclass

_BRACKETS = re.compile(
    r"\\\[((?:[^\\]|\\[^\[\]])*)\\\]"
    r"|\\\(((?:[^\\\n]|\\[^()\n])*)\\\)"
    r"|(?<!\\)\$\$((?:[^$\\]|\\.)+)\$\$",
    re.DOTALL,
)
_DOLLAR = re.compile(r"(?<!\\)\$")
_FRACTION = re.compile(
    r"-?\\[dtc]?frac\s?\{[^{}\n]{1,80}\}\s?\{[^{}\n]{1,80}\}"
)  # without any sign
_JOINED = re.compile(r"\s*(?:,?\s*\\?\b(?:and|or)\b|,|;|&)\s*", re.I)


@dataclass(frozen=True)
class Span:
    """A formula: where it starts and ends, its signs included, and what stands between them."""

    start: int
    end: int
    inner: str


def spans_of(text: str, bare: bool = False) -> list[Span]:
    """The formulas in their order; with `bare` also fractions without any sign around them.

    Single dollar signs are paired from the end of the text, within a line; one that a digit
    follows closes nothing: in "$18 and $x=3$" there is one formula.
    """
    found = []
    for match in _BRACKETS.finditer(text):
        inner = next(group for group in match.groups() if group is not None)
        found.append(Span(match.start(), match.end(), inner.strip()))
    marks = [match.start() for match in _DOLLAR.finditer(masked(text, found))]
    index = len(marks) - 1
    while index > 0:
        first, last = marks[index - 1], marks[index]
        inner = text[first + 1 : last]
        if text[last + 1 : last + 2].isdigit() or "\n" in inner or not inner.strip():
            index -= 1
            continue
        found.append(Span(first, last + 1, inner.strip()))
        index -= 2
    found.sort(key=lambda span: span.start)
    if bare and "frac" in text:
        found += [Span(m.start(), m.end(), m[0]) for m in _FRACTION.finditer(masked(text, found))]
    return sorted(found, key=lambda span: span.start)


def masked(text: str, spans: list[Span], sign: str = " ") -> str:
    """The text with every character of the spans replaced: positions stay the same."""
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], sign * (span.end - span.start)]
        at = span.end
    return "".join([*parts, text[at:]])


def joined_from(text: str, spans: list[Span], first: int) -> int:
    """The last of the spans that "and", "or" or a comma join to `spans[first]` and onwards."""
    while first + 1 < len(spans) and _are_joined(text, spans[first], spans[first + 1]):
        first += 1
    return first


def joined_to(text: str, spans: list[Span], last: int) -> int:
    """The first of the spans that are so joined up to `spans[last]`."""
    while last > 0 and _are_joined(text, spans[last - 1], spans[last]):
        last -= 1
    return last


def _are_joined(text: str, one: Span, other: Span) -> bool:
    return other.start - one.end <= 12 and bool(_JOINED.fullmatch(text, one.end, other.start))


# An escaped character is stepped over, so that the braces of \{1, 2\} do not count.
_BRACES = re.compile(
    r"\\(?:boxed|fbox)\s{0,9}\{|\\(?:boxed|fbox)[ \t]{1,9}(?P<bare>[^\s\\{}$]+)|\\.|[{}]", re.DOTALL
)
MAX_BOXES = 50  # of one answer
_CLOSE, _NEAR = 10, 70  # characters between boxes of one answer: no words, or a joining one
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
_JOIN = re.compile(r"\b(?:and|or)\b|[,;&]")
_STOP = re.compile(r"[.!?]\s|\n[ \t]*\n|\b(?:not|no|wait|actually|instead|thus|hence|so)\b", re.I)


@dataclass(frozen=True)
class Box:
    """A box: where its command starts, what it holds (None = it is not closed), where it ends."""

    start: int
    content: str | None
    end: int


def boxes_of(text: str) -> list[Box]:
    """All boxes in the order they start; of nested ones the innermost."""
    opened: list[tuple[int, int] | None] = []  # start and content's start; None = any other brace
    found: list[Box] = []
    for match in _BRACES.finditer(text):
        if match["bare"]:
            found.append(Box(match.start(), match["bare"].rstrip(".,;"), match.end()))
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append((match.start(), match.end()) if match[0] != "{" else None)
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start is not None and not (found and found[-1].start > start[0]):
                found.append(Box(start[0], text[start[1] : match.start()], match.end()))
    unclosed = [Box(start[0], None, len(text)) for start in opened if start is not None]
    return sorted([*found, *unclosed[-1:]], key=lambda box: box.start)


def last_boxes(text: str) -> list[Box]:
    """The boxes at the end that are one answer: \\boxed{1} and \\boxed{2}. [] = there is no box.

    They stand close together, or are joined by a word or a comma; a sentence that ends between
    them, or a repeated content, parts them. At most `MAX_BOXES` + 1: then there are more.
    """
    found = boxes_of(text)
    kept = found[-1:]  # from the last one backwards
    contents = {box.content for box in kept}
    for box in reversed(found[:-1]):
        between = text[box.end : kept[-1].start]
        is_close = len(between) < _CLOSE and not _WORD.search(between)
        if not (is_close or (len(between) < _NEAR and _JOIN.search(between))):
            break
        if _STOP.search(between) or not (box.content or "").strip():
            break
        if box.content in contents or len(kept) > MAX_BOXES:
            break
        kept.append(box)
        contents.add(box.content)
    return kept[::-1]
