"""The tokens of a step: numbers, operators, brackets, "=", words, and what ends a calculation."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from prefkit.pairs.grading.rationals import MAX_DIGITS, Number, Token, number

_DIGITS = r"""
    (?<=[$€£])\d{1,3}(?:[ ]\d{3})+(?!\d)      # $350 000
  | \d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)
  | \d+(?:\.\d+)?
  | (?<!\d)\.\d+
"""
_TOKEN = re.compile(
    rf"""
    (?P<break>\d{{1,2}}:[0-5]\d(?!\d)|\d+(?:st|nd|rd|th)\b|[A-Za-z]\w*[-/]\d\w*|\.\.\.)
  | (?P<word>(?<=[\dA-Za-z])-(?=[A-Za-z])|\bper\b|/(?=\s*[A-Za-z])|['’]s\b)
  | (?P<mixed>\d+[ ]\d{{1,2}}/\d{{1,2}}(?![\d/]))
  | (?P<number>{_DIGITS})(?P<percent>\s*\\?%)?
  | (?P<money>\\?[$€£])
  | (?P<of>\bof\b)
  | (?P<times>(?<=[\d)%\sA-Za-z])[xX](?=\s*[$(]?\s*[\d.]))
  | (?P<equals>=+|≈)
  | (?P<op>\\times|\\cdot|\\div|\*\*|[-+*/^()×÷−–·])
  | (?P<variable>\b[A-Zb-z]\b|(?<=\d)[A-Za-z](?![A-Za-z]))
  | (?P<letters>[A-Za-z]+)
  | (?P<space>[ \t]+)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
# Between a number and an operator these end the calculation: what follows is another clause.
_CLAUSE = frozenset(
    """
    is are was were be been so and or then because which that has have had he she they it if will
    would can gives get gets equals since when while means mean making makes make
    """.split()  # noqa: SIM905
)
_OPERATORS = {
    "×": "*", "÷": "/", "−": "-", "–": "-", "·": "*", "**": "^", "\\times": "*", "\\cdot": "*",
    "\\div": "/",
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A token, its kind (a group of the pattern, "clause", or "break") and where it stands."""

    kind: str
    token: Token
    text: str
    start: int = 0


def pieces_of(text: str) -> Iterator[Piece]:
    """The tokens; currency signs and spaces are left out."""
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if match["number"]:
            if len(match["number"]) > MAX_DIGITS:
                yield Piece("break", "", match[0], match.start())
            else:
                value = number(match["number"].replace(" ", ""), bool(match["percent"]))
                yield Piece("number", value, match[0], match.start())
        elif match["mixed"]:
            whole, _, fraction = match["mixed"].partition(" ")
            value = Number(Fraction(whole) + _fraction(fraction))
            yield Piece("number", value, match[0], match.start())
        elif kind in ("op", "times"):
            sign = "*" if kind == "times" else _OPERATORS.get(match[0], match[0])
            yield Piece("op", sign, match[0], match.start())
        elif kind == "letters":
            kind = "clause" if match[0].lower() in _CLAUSE else "word"
            yield Piece(kind, "", match[0], match.start())
        elif kind not in ("space", "money"):
            kind = {"other": "break"}.get(kind, kind)
            yield Piece(kind, "", match[0], match.start())


def _fraction(text: str) -> Fraction:
    above, _, below = text.partition("/")
    return Fraction(int(above), int(below)) if int(below) else Fraction(0)
