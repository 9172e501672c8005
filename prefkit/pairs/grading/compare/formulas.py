r"""Answers that are formulas: by math-verify, from its LaTeX grammar alone, and checked by numbers.

Math-verify (github.com/huggingface/Math-Verify) compares formulas, equations, sets, tuples,
intervals and matrices. Its own time limits are off: they need signals, and the worker is killed
from outside. Its reader of plain expressions is not used: it evaluates Python.
"""

import logging
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from prefkit.pairs.grading.compare.amounts import values_compared
from prefkit.pairs.grading.compare.comparison import (
    DIFFERENT,
    DISAGREE,
    EQUAL,
    ROUNDED,
    UNREAD,
    Comparison,
    decided,
)
from prefkit.pairs.grading.units import quantity

# What it may be given: commands whose evaluation is bounded by the digits that `sane` lets pass.
_COMMANDS = frozenset(
    r"""
    frac sqrt pi cdot times div pm mp le ge ne infty cup cap in emptyset begin end sin cos tan cot
    sec csc arcsin arccos arctan log ln exp theta alpha beta gamma delta lambda mu phi omega sigma
    rho epsilon mathbb setminus to ldots dots overline angle lt gt quad qquad mid vert lvert rvert
    det vec hat mathbf bmod pmod equiv approx sim circ prime ell triangle text min max sinh cosh
    tanh psi tau nu eta xi zeta kappa chi Delta Gamma Omega Sigma Phi Psi Lambda Theta forall subset
    R Z Q N C langle rangle parallel perp cong iff land lor sum binom left right dfrac tfrac cfrac
    leq geq neq boxed textbf mathrm displaystyle
    """.split()  # noqa: SIM905
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_BASED = re.compile(r"\d_")  # a number in another base: math-verify reads it in base ten
_LONG = {"sum", "binom"}  # as long as the numbers in them are large
_EQUALS = re.compile(r"(?<![\\<>])=(?![^{}]*\})")
_PROSE = re.compile(
    r"(?<![\\A-Za-z{])(?:(?!matrix|array|infty|cases)[a-z]{4,}"
    r"|(?:of|at|by|not|the|for|per|are|has|is|its?)(?![A-Za-z]))"
)
_SET, _TUPLE = re.compile(r"\\\{[^{}]*\\\}"), re.compile(r"\([^()]*,[^()]*\)")
_IMPLICIT = re.compile(r"[^=<>]*[a-z][^=<>]*[-+][^=<>]*=\s*0")
_SPOTS = (Fraction(7, 5), Fraction(23, 7), Fraction(5, 11))  # values put in for unknowns


def formulas_equal(answer: str, gold: str) -> Comparison:
    """Whether two formulas in normal form are equal."""
    if _SET.fullmatch(gold) and _TUPLE.fullmatch(answer):
        return DIFFERENT  # math-verify takes (1,2) for an open interval, and that for a set
    if _SET.fullmatch(answer) and _TUPLE.fullmatch(gold):
        return DIFFERENT
    if gold == "0" and _IMPLICIT.fullmatch(answer):
        return DISAGREE  # math-verify takes the right side of an equation for its value
    sides = [read(text) for text in (gold, answer)]
    if not all(sides):
        return UNREAD
    verdict = verified(*sides)
    numeric = _by_numbers(sides[1][0], answer, sides[0][0], gold)
    if numeric == ROUNDED:
        return ROUNDED
    if verdict is None:
        return EQUAL if numeric == EQUAL else UNREAD
    if numeric is None or numeric.equal is verdict:
        is_prose = not verdict and any(_is_prose(text) for text in (answer, gold))
        return UNREAD if is_prose else decided(verdict)
    free = getattr(sides[0][0], "free_symbols", ()) or getattr(sides[1][0], "free_symbols", ())
    return DISAGREE if free else numeric


def _is_prose(text: str) -> bool:
    """Whether words stand in it that math-verify reads as products of letters."""
    return bool(_PROSE.search(text)) and quantity(text) is None


def read(text: str) -> list[Any]:
    """The SymPy objects that math-verify makes of a formula; [] where it makes none."""
    if not readable(text):
        chain = _EQUALS.split(text)  # what it comes to may be readable
        is_chain = len(chain) > 2 and "," not in text and text.count("{") == text.count("}")
        return read(chain[-1]) if is_chain else []
    if text.count("\\pm") == 1 and not text.startswith("\\{"):
        text = ", ".join(re.sub(r"\\pm\s*", sign, text) for sign in "+-")
    return found_in(rf"\boxed{{{text}}}")


def readable(text: str) -> bool:
    """Whether math-verify may be given a text: no command in it may take for ever."""
    commands = set(_COMMAND.findall(text))
    if text.count("{") != text.count("}") or (commands & _LONG and re.search(r"\d{4}", text)):
        return False
    return commands <= _COMMANDS and not _BASED.search(text)


def found_in(text: str) -> list[Any]:
    """What math-verify finds in a text that holds formulas; [] = nothing that it can read."""
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    return list(parse(text, config, fallback_mode="no_fallback", parsing_timeout=None))


def verified(gold: list[Any], answer: list[Any]) -> bool | None:
    """Whether math-verify calls them equal; None = it fails."""
    from math_verify import verify

    try:
        return bool(
            verify(
                gold,
                answer,
                float_rounding=6,
                allow_set_relation_comp=True,
                timeout_seconds=None,
                raise_on_error=True,
            )
        )
    except Exception:  # of SymPy, of any kind: it has no verdict
        return None


def _by_numbers(one: object, answer: str, other: object, gold: str) -> Comparison | None:
    r"""Whether the values are equal, with numbers put in for unknowns; None = there are none.

    A decimal may stand for the other's value (1.41421 for \sqrt{2}), see `values_compared`.
    """
    import sympy

    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return None
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    if len(symbols) > 6 or one.has(sympy.Sum) or other.has(sympy.Sum):
        return None
    if isinstance(one, sympy.Rational) and isinstance(other, sympy.Rational):
        return decided(bool(one == other))
    verdicts: list[bool | None] = []
    for spot in _SPOTS if symbols else _SPOTS[:1]:
        given = {symbol: spot + index for index, symbol in enumerate(symbols)}
        values = [_value(side, given) for side in (one, other)]
        verdicts.append(_close(*values))
    if not symbols and verdicts == [False] and not any(value.imag for value in values):
        return values_compared(Fraction(values[0].real), answer, Fraction(values[1].real), gold)
    return None if None in verdicts else decided(all(verdicts))


def _value(side: Any, given: Mapping[Any, Fraction]) -> complex:
    """The value of an expression, not a number where it has none."""
    import sympy

    try:
        put_in = {name: sympy.Rational(x.numerator, x.denominator) for name, x in given.items()}
        return complex(sympy.N(side.subs(put_in), 30))
    except Exception:  # of SymPy, of any kind, or too large for a float
        return complex("nan")


def _close(one: complex, other: complex) -> bool | None:
    """Whether two values are the same but for rounding; None = that cannot be told."""
    size = max(abs(one), abs(other))
    if not 1e-100 < size < math.inf:
        return None
    return abs(one - other) <= 1e-9 * size
