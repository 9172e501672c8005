"""The calculations written in a step: `<<48/2=24>>`, `6 inches * 2 = 12 inches`, `2+3 = 5 x 4`.

A step is cut into tokens (numbers, operators, brackets, "=", words, breaks); around every "=" the
longest expressions on both sides are read. Units may stand between a number and an operator; where
a word makes the reading doubtful (a variable, a time of day) there is no calculation.
"""

import re
from dataclasses import dataclass

from prefkit.pairs.grading.rationals import Node, Number, Sum
from prefkit.pairs.localise.reading import backwards, forwards, whole_expression
from prefkit.pairs.localise.tokens import pieces_of

MARK = re.compile(r"<<([^<>=\n]*)=([^<>\n]*)>>")
MAX_LENGTH = 4000  # characters of a step that are looked at


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
        left, right = whole_expression(match[1]), whole_expression(match[2])
        if isinstance(right, Number):
            found.append(Calculation(match[0], left, right, right, marked=True))
        elif right is not None and (value := _signed(right)) is not None:
            found.append(Calculation(match[0], left, value, value, marked=True))
    return found


def plain(text: str) -> list[Calculation]:
    """The calculations around each "=" of a text without marks."""
    pieces = list(pieces_of(text[:MAX_LENGTH]))
    equals = [place for place, piece in enumerate(pieces) if piece.kind == "equals"]
    found = []
    for place in equals:
        right = forwards(pieces, place + 1)
        if right is None:
            continue
        left = backwards(pieces, place)
        tree, result = right
        start, at = pieces[max(0, place - 12)].start, pieces[place].start
        said = text[start:at].rpartition("\n")[2] + text[at : at + 24].partition("\n")[0]
        found.append(Calculation(said.strip(), left, tree, result, rough=pieces[place].text == "≈"))
    return found


def numbers(text: str) -> list[Number]:
    """The numbers of a text in digits, but for times of day and ordinals."""
    return [
        piece.token
        for piece in pieces_of(unmarked(text)[:MAX_LENGTH])
        if isinstance(piece.token, Number)
    ]


def _signed(node: Node) -> Number | None:
    """-3 as a number, None for any other tree."""
    if not isinstance(node, Sum) or len(node.terms) != 1:
        return None
    sign, inner = node.terms[0]
    if not isinstance(inner, Number):
        return None
    return Number(sign * inner.value, inner.decimals, inner.percent)
