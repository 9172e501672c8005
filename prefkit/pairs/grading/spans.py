r"""Where the formulas of a text are: $…$, $$…$$, \(…\), \[…\]. One pass, money left alone."""

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
    place = len(marks) - 1
    while place > 0:
        first, last = marks[place - 1], marks[place]
        inner = text[first + 1 : last]
        if text[last + 1 : last + 2].isdigit() or "\n" in inner or not inner.strip():
            place -= 1
            continue
        found.append(Span(first, last + 1, inner.strip()))
        place -= 2
    found.sort(key=lambda span: span.start)
    if bare and "frac" in text:
        found += [Span(m.start(), m.end(), m[0]) for m in _FRACTION.finditer(masked(text, found))]
    return sorted(found, key=lambda span: span.start)


def masked(text: str, spans: list[Span], sign: str = " ") -> str:
    """The text with every character of the spans replaced: places stay the same."""
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
