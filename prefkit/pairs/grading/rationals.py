"""Written arithmetic as a tree of exact fractions: read by a small parser, never by `eval`.

    expression  ["-"] term (("+" | "-") term)*
    term        factor (("*" | "/") factor | "(" …)*
    factor      atom ["^" factor]
    atom        number ["%"] | "(" expression ")" | "-" atom

Everything is bounded (tokens, digits, depth, the size of powers), so that no text can take long.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_TOKENS, MAX_DIGITS, MAX_DEPTH, MAX_POWER, MAX_BITS = 200, 40, 20, 200, 4096

_NUMBER = r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+"
_TOKEN = re.compile(rf"\s*(?:(?P<number>{_NUMBER})(?P<percent>\s*\\?%)?|(?P<op>\*\*|[-+*/^()]))")
_SAME = str.maketrans(
    {"×": "*", "÷": "/", "−": "-", "–": "-", "·": "*", "⋅": "*", "∗": "*", "{": "(", "}": ")"}
)
_LATEX = re.compile(r"\\(times|cdot|div)(?![A-Za-z])")


class Unreadable(ValueError):
    """The text is no expression of this grammar, or out of its bounds."""


@dataclass(frozen=True)
class Number:
    """A number as written: exact value (of 25 % it is 25), decimals, and whether % follows."""

    value: Fraction
    decimals: int = 0
    percent: bool = False


@dataclass(frozen=True)
class Sum:
    terms: tuple[tuple[int, "Node"], ...]  # (+1 | -1, node)


@dataclass(frozen=True)
class Product:
    factors: tuple[tuple[int, "Node"], ...]  # (+1 | -1 = divided by, node)


@dataclass(frozen=True)
class Power:
    base: "Node"
    exponent: "Node"


Node = Number | Sum | Product | Power
Token = Number | str


def number(text: str, percent: bool = False) -> Number:
    """A number of digits, with thousands separators or a decimal point.

    Raises:
        Unreadable: more than `MAX_DIGITS` digits.
    """
    text = text.replace(",", "")
    if len(text) > MAX_DIGITS:
        raise Unreadable(f"a number of {len(text)} characters")
    decimals = len(text.partition(".")[2])
    return Number(Fraction(text if text[-1] != "." else text[:-1]), decimals, percent)


def tokens_of(text: str) -> list[Token]:
    """The tokens of a pure expression.

    Raises:
        Unreadable: anything else stands in the text.
    """
    if len(text) > MAX_TOKENS * 10:
        raise Unreadable("too long")
    text = _LATEX.sub(lambda match: "/" if match[1] == "div" else "*", text.translate(_SAME))
    text, found, at = text.strip(), list[Token](), 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(f"unexpected {text[at]!r}")
        if match["number"]:
            found.append(number(match["number"], bool(match["percent"])))
        else:
            found.append("^" if match["op"] == "**" else match["op"])
        at = match.end()
    return found


def parse(tokens: Sequence[Token]) -> Node:
    """The tree of an expression.

    Raises:
        Unreadable: it is none, or larger than the bounds.
    """
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise Unreadable(f"{len(tokens)} tokens")
    reader = _Reader(tokens)
    node = reader.expression(0)
    if reader.at != len(tokens):
        raise Unreadable(f"unexpected {tokens[reader.at]!r}")
    return node


def evaluate(node: Node, percent: str = "hundredths") -> Fraction:
    """The exact value.

    Args:
        node: a tree.
        percent: what 25 % is: "hundredths" = 0.25; "plain" = 25; "relative" = after + or - a
            share of what stands before it (50 + 10 % = 55), else hundredths.

    Raises:
        Unreadable: a division by zero, a power that is not whole or too large.
    """
    match node:
        case Number(value, _, is_percent):
            return value / 100 if is_percent and percent != "plain" else value
        case Sum(terms):
            total = Fraction(0)
            for index, (sign, term) in enumerate(terms):
                value = evaluate(term, percent)
                if percent == "relative" and index and isinstance(term, Number) and term.percent:
                    value *= total
                total += sign * value
            return total
        case Product(factors):
            total = Fraction(1)
            for exponent, factor in factors:
                value = evaluate(factor, percent)
                if exponent < 0 and not value:
                    raise Unreadable("a division by zero")
                total = total * value if exponent > 0 else total / value
                _bounded(total)
            return total
        case Power(base, exponent):
            return _power(evaluate(base, percent), evaluate(exponent, percent))


def value_of(text: str) -> Fraction | None:
    """The exact value of a pure expression; None for any other text."""
    try:
        return evaluate(parse(tokens_of(text)))
    except Unreadable:
        return None


def leaves(node: Node) -> list[Number]:
    """The numbers of a tree, from left to right."""
    match node:
        case Number():
            return [node]
        case Sum(parts) | Product(parts):
            return [leaf for _, part in parts for leaf in leaves(part)]
        case Power(base, exponent):
            return [*leaves(base), *leaves(exponent)]


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > MAX_POWER or (exponent < 0 and not base):
        raise Unreadable("a power out of bounds")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(exponent) > MAX_BITS:
        raise Unreadable("a power out of bounds")
    return Fraction(base ** int(exponent))


def _bounded(value: Fraction) -> None:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise Unreadable("a value out of bounds")


class _Reader:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens, self.at = tokens, 0

    def peek(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> Token | None:
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else None

    def expression(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Unreadable("brackets too deep")
        terms = [(self._sign(), self.term(depth))]
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            terms.append((sign, self.term(depth)))
        return terms[0][1] if terms == [(1, terms[0][1])] else Sum(tuple(terms))

    def _sign(self) -> int:
        if self.peek() in ("+", "-"):
            return 1 if self.take() == "+" else -1
        return 1

    def term(self, depth: int) -> Node:
        factors = [(1, self.factor(depth))]
        while self.peek() in ("*", "/", "("):
            exponent = -1 if self.peek() == "/" else 1
            if self.peek() != "(":
                self.take()
            factors.append((exponent, self.factor(depth)))
        return factors[0][1] if len(factors) == 1 else Product(tuple(factors))

    def factor(self, depth: int) -> Node:
        base = self.atom(depth)
        if self.peek() != "^":
            return base
        self.take()
        if depth > MAX_DEPTH:
            raise Unreadable("powers too deep")
        return Power(base, self.factor(depth + 1))

    def atom(self, depth: int) -> Node:
        token = self.take()
        if isinstance(token, Number):
            return token
        if token == "-" and depth <= MAX_DEPTH:
            return Sum(((-1, self.atom(depth + 1)),))
        if token != "(":
            raise Unreadable(f"unexpected {token!r}")
        node = self.expression(depth + 1)
        if self.take() != ")":
            raise Unreadable("a bracket is not closed")
        return node
