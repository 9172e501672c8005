"""The tokens of a step, and the longest expressions on both sides of an "=" among them.

A step is cut into numbers, operators, brackets, "=", words, and what ends a calculation. Where a
word makes the reading doubtful (a variable, a time of day) there is no expression.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from prefkit.pairs.grading.rationals import (
    MAX_DIGITS,
    Node,
    Number,
    Token,
    Unreadable,
    number,
    parse,
)

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


MAX_WORDS = 6  # of a unit: "rides on the roller coaster"


def whole_expression(text: str) -> Node | None:
    """A text that is an expression from end to end, or None."""
    pieces = list(pieces_of(text))
    if any(piece.kind not in ("number", "op") for piece in pieces):
        return None
    return parsed([piece.token for piece in pieces])


def parsed(tokens: list[Token]) -> Node | None:
    try:
        return parse(tokens)
    except Unreadable:
        return None


def backwards(pieces: list[Piece], equals: int) -> Node | None:
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
        elif _is_share(pieces, at) and needs_operator and not words:
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


def _is_share(pieces: list[Piece], at: int) -> bool:
    """Whether an "of" stands behind a number: half of 8 is no product, 1/2 of 8 is one."""
    return pieces[at].kind == "of" and at > 0 and pieces[at - 1].kind == "number"


def _joins(piece: Piece) -> bool:
    return piece.text.lower() in ("of", "in", "per", "times")


def _is_dash(pieces: list[Piece], at: int, words: int) -> bool:
    """Whether the minus after index `at` (and words) is set apart from its number by a space."""
    index = at + 1 + words
    after = pieces[index + 1 : index + 2]
    return bool(after) and after[0].start > pieces[index].start + 1


def _is_article(pieces: list[Piece], start: int, words: int) -> bool:
    return words == 1 and pieces[start].text.lower() in ("the", "a", "another", "her", "his")


def _with_operator(tokens: list[Token], depth: int) -> Node | None:
    operators = sum(1 for token in tokens if isinstance(token, str) and token in "+-*/^")
    if depth or not operators or not tokens:
        return None
    if isinstance(tokens[0], str) and tokens[0] in "+*/^":
        return None  # its left side is words
    if tokens[0] == "-" and operators == 1:
        return None
    return parsed(tokens)


def forwards(pieces: list[Piece], start: int) -> tuple[Node, Number] | None:
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
            is_remark = words or not _holds_a_factor(pieces, at)
            if piece.token == "(" and tokens and isinstance(tokens[-1], Number) and is_remark:
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
        if tokens and (tree := parsed(tokens)) is not None and words == 0:
            best = (at, tree)
        at += 1
    if best is None or _goes_on_in_words(tokens, pieces[at : at + 1]):
        return None
    first = _first_number(tokens)
    return None if first is None else (best[1], first)


def _holds_a_factor(pieces: list[Piece], bracket: int) -> bool:
    """Whether a bracket holds numbers and operators alone, 7(301) or 4 (-1), and no remark."""
    depth = 0
    for piece in pieces[bracket:]:
        if piece.kind not in ("number", "op"):
            return False
        depth += (piece.token == "(") - (piece.token == ")")
        if not depth:
            return True
    return False


def _goes_on_in_words(tokens: list[Token], following: list[Piece]) -> bool:
    """Whether an operator stands before a word: 5 + the rest, 6^2 + OP^2 are more than 5 and 6^2.
    A minus may be a dash."""
    open_ended = bool(tokens) and isinstance(tokens[-1], str) and tokens[-1] in "+*/^"
    return open_ended and bool(following) and following[0].kind in ("word", "of")


def _first_number(tokens: list[Token]) -> Number | None:
    """The number that the tokens begin with, after a sign."""
    if tokens and isinstance(tokens[0], Number):
        return tokens[0]
    if len(tokens) > 1 and tokens[0] == "-" and isinstance(tokens[1], Number):
        return Number(-tokens[1].value, tokens[1].decimals, tokens[1].percent)
    return None
