"""The calculations written in a step: `<<48/2=24>>`, `6 inches * 2 = 12 inches`, `2+3 = 5 x 4`.

A step is cut into tokens (numbers, operators, brackets, "=", words, breaks); around every "=" the
longest expressions on both sides are read. Units may stand between a number and an operator; where
a word makes the reading doubtful (a variable, a time of day) there is no calculation.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from prefkit.build.grading.rationals import (
    MAX_DIGITS,
    Node,
    Number,
    Sum,
    Token,
    Unreadable,
    number,
    parse,
)

MARK = re.compile(r"<<([^<>=\n]*)=([^<>\n]*)>>")
MAX_LENGTH = 4000  # characters of a step that are looked at
MAX_WORDS = 6  # of a unit: "rides on the roller coaster"

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
class Calculation:
    """An expression and what is said to be its result.

    Attributes:
        text: as written, shortened.
        left: the expression before "="; None where it could not be read ("6 PM - 1 PM = 4").
        right: the expression after it, mostly a number.
        result: the number that stands for the result: the first one after "=".
        marked: from a calculator mark.
        rough: "≈" stands for "=".
    """

    text: str
    left: Node | None
    right: Node
    result: Number
    marked: bool = False
    rough: bool = False


@dataclass(frozen=True)
class _Piece:
    kind: str
    token: Token
    text: str
    start: int = 0


def unmarked(step: str) -> str:
    """A step without calculator marks."""
    return re.sub(r"<<[^<>\n]*>>", "", step)


def calculations(step: str) -> list[Calculation]:
    """Everything a step calculates, marks first, else in the order of the text."""
    step = step[:MAX_LENGTH]
    return [*marked(step), *plain(unmarked(step))]


def marked(step: str) -> list[Calculation]:
    """The calculations of the marks `<<48/2=24>>`."""
    found = []
    for match in MARK.finditer(step[:MAX_LENGTH]):
        left, right = _expression(match[1]), _expression(match[2])
        if isinstance(right, Number):
            found.append(Calculation(match[0], left, right, right, marked=True))
        elif right is not None and (value := _signed(right)) is not None:
            found.append(Calculation(match[0], left, value, value, marked=True))
    return found


def plain(text: str) -> list[Calculation]:
    """The calculations around each "=" of a text without marks."""
    pieces = list(_pieces(text[:MAX_LENGTH]))
    equals = [place for place, piece in enumerate(pieces) if piece.kind == "equals"]
    found = []
    for place in equals:
        right = _forwards(pieces, place + 1)
        if right is None:
            continue
        left = _backwards(pieces, place)
        tree, result = right
        start = pieces[max(0, place - 12)].start
        said = text[start : pieces[place].start + 24].strip()
        found.append(Calculation(said, left, tree, result, rough=pieces[place].text == "≈"))
    return found


def numbers(text: str) -> list[Number]:
    """The numbers of a text in digits, but for times of day and ordinals."""
    return [
        piece.token
        for piece in _pieces(unmarked(text)[:MAX_LENGTH])
        if isinstance(piece.token, Number)
    ]


# ---------------------------------------------------------------------------------------- reading


def _expression(text: str) -> Node | None:
    """A text that is an expression from end to end, or None."""
    pieces = list(_pieces(text))
    if any(piece.kind not in ("number", "op") for piece in pieces):
        return None
    return _parsed([piece.token for piece in pieces])


def _parsed(tokens: list[Token]) -> Node | None:
    try:
        return parse(tokens)
    except Unreadable:
        return None


def _signed(node: Node) -> Number | None:
    """-3 as a number, None for any other tree."""
    if not isinstance(node, Sum) or len(node.terms) != 1:
        return None
    sign, inner = node.terms[0]
    if not isinstance(inner, Number):
        return None
    return Number(sign * inner.value, inner.decimals, inner.percent)


def _pieces(text: str) -> Iterator[_Piece]:
    """The tokens; currency signs and spaces are left out."""
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if match["number"]:
            if len(match["number"]) > MAX_DIGITS:
                yield _Piece("break", "", match[0], match.start())
            else:
                value = number(match["number"].replace(" ", ""), bool(match["percent"]))
                yield _Piece("number", value, match[0], match.start())
        elif match["mixed"]:
            whole, _, fraction = match["mixed"].partition(" ")
            value = Number(Fraction(whole) + _fraction(fraction))
            yield _Piece("number", value, match[0], match.start())
        elif kind in ("op", "times"):
            sign = "*" if kind == "times" else _OPERATORS.get(match[0], match[0])
            yield _Piece("op", sign, match[0], match.start())
        elif kind == "letters":
            kind = "clause" if match[0].lower() in _CLAUSE else "word"
            yield _Piece(kind, "", match[0], match.start())
        elif kind not in ("space", "money"):
            kind = {"other": "break"}.get(kind, kind)
            yield _Piece(kind, "", match[0], match.start())


def _fraction(text: str) -> Fraction:
    above, _, below = text.partition("/")
    return Fraction(int(above), int(below)) if int(below) else Fraction(0)


def _backwards(pieces: list[_Piece], equals: int) -> Node | None:
    """The longest expression that ends before an "=" and has an operator.

    None where there is none, or where it begins with something that is not understood: an
    operator whose left side is a word, a variable.
    """
    tokens: list[Token] = []
    words, depth, at = 0, 0, equals - 1
    while at >= 0:
        piece = pieces[at]
        needs_operator = bool(tokens) and (
            isinstance(tokens[0], Number) or (tokens[0] == "(" and words > 0)
        )
        at > 0 and pieces[at - 1].kind == "number"
        if piece.kind == "number":
            if needs_operator:
                if any(_joins(piece) for piece in pieces[at + 1 : at + 1 + words]):
                    return None  # "8 packs of 5 bags * 4": what belongs together is unsure
                break
            tokens.insert(0, piece.token)
            words = 0
        elif piece.kind == "op" and piece.token == ")" and not needs_operator:
            tokens.insert(0, ")")
            depth += 1
        elif piece.kind == "op" and piece.token == "(":
            if depth == 0:
                return None
            tokens.insert(0, "(")
            depth -= 1
        elif piece.kind == "op" and piece.token != ")":
            if words and needs_operator and not _is_article(pieces, at + 1, words):
                break  # an operator, words, a number: no reading is sure
            tokens.insert(0, piece.token)
            words = 0
        elif (
            piece.kind == "of"
            and needs_operator
            and not words
            and at
            and pieces[at - 1].kind == "number"
        ):
            tokens.insert(0, "*")
        elif piece.kind in ("word", "of") and words < MAX_WORDS:
            words += 1
        elif piece.kind == "variable":
            return None
        else:
            break
        at -= 1
    if tokens and tokens[0] == "-" and pieces[at + 1 : at + 2] and _is_dash(pieces, at, words):
        tokens = tokens[1:]
    return _with_operator(tokens, depth)


def _joins(piece: _Piece) -> bool:
    return piece.text.lower() in ("of", "in", "per", "times")


def _is_dash(pieces: list[_Piece], at: int, words: int) -> bool:
    """Whether the minus after place `at` (and words) is set apart from its number by a space."""
    place = at + 1 + words
    after = pieces[place + 1 : place + 2]
    return bool(after) and after[0].start > pieces[place].start + 1


def _is_article(pieces: list[_Piece], start: int, words: int) -> bool:
    return words == 1 and pieces[start].text.lower() in ("the", "a", "another", "her", "his")


def _with_operator(tokens: list[Token], depth: int) -> Node | None:
    operators = sum(1 for token in tokens if isinstance(token, str) and token in "+-*/^")
    if depth or not operators or not tokens:
        return None
    if isinstance(tokens[0], str) and tokens[0] in "+*/^":
        return None  # its left side is words
    if tokens[0] == "-" and operators == 1:
        return None
    return _parsed(tokens)


def _forwards(pieces: list[_Piece], start: int) -> tuple[Node, Number] | None:
    """(the longest expression from `start` on, the number it begins with)."""
    tokens: list[Token] = []
    best: tuple[int, Node] | None = None
    words, at = 0, start
    while at < len(pieces):
        piece = pieces[at]
        if piece.kind == "number" and (not tokens or isinstance(tokens[-1], str)):
            tokens.append(piece.token)
            words = 0
        elif piece.kind == "op" and (tokens or piece.token in ("(", "-")):
            if piece.token == "(" and tokens and (words or isinstance(tokens[-1], Number)):
                break
            tokens.append(piece.token)
            words = 0
        elif piece.kind == "of" and tokens and isinstance(tokens[-1], Number) and not words:
            tokens.append("*")
        elif piece.kind == "word" and tokens and isinstance(tokens[-1], Number):
            words += 1
            if words > MAX_WORDS:
                break
        elif piece.kind == "variable":
            if words == 0 or not tokens:
                return None
            break
        else:
            break
        if tokens and (tree := _parsed(tokens)) is not None and words == 0:
            best = (at, tree)
        at += 1
    if best is None:
        return None
    first = _first_number(tokens)
    return None if first is None else (best[1], first)


def _first_number(tokens: list[Token]) -> Number | None:
    """The number that the tokens begin with, after a sign."""
    if tokens and isinstance(tokens[0], Number):
        return tokens[0]
    if len(tokens) > 1 and tokens[0] == "-" and isinstance(tokens[1], Number):
        return Number(-tokens[1].value, tokens[1].decimals, tokens[1].percent)
    return None
