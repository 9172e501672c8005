r"""Answers that are formulas: by math-verify, from its LaTeX grammar alone."""

import re
from fractions import Fraction

from prefkit.build.grading.amounts import decimals, values_equal

_COMMANDS = frozenset(
    """
    frac sqrt pi cdot times div pm mp le ge ne infty cup cap in emptyset begin end sin cos tan cot
    sec csc arcsin arccos arctan log ln exp theta alpha beta gamma delta lambda mu phi omega sigma
    rho epsilon mathbb setminus to ldots dots overline angle lt gt
    """.split()  # noqa: SIM905
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")


def symbolic_equal(answer: str, gold: str) -> bool:
    """By math-verify, from its LaTeX grammar alone (its other reader evaluates Python).

    Its own time limits are off: they need signals, and the worker is killed from outside.
    """
    if any(set(_COMMAND.findall(text)) - _COMMANDS for text in (answer, gold)):
        return False
    if any(re.search(r"\d_", text) for text in (answer, gold)):
        return False  # a number in another base: equal as text or not at all
    if not any(re.search(r"[\d\\+*/^=<>-]|\b\w\b", text) for text in (answer, gold)):
        return False
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    sides = [
        parse(
            rf"\boxed{{{text}}}",
            config,
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )
        for text in (gold, answer)
    ]
    if not all(sides):
        return False
    if verify(*sides, float_rounding=6, timeout_seconds=None):
        return True
    return _rounded_value(sides[1][0], answer, sides[0][0], gold)


def _rounded_value(one: object, answer: str, other: object, gold: str) -> bool:
    r"""Whether one side is a decimal that stands for the other's value (1.41421 for \sqrt{2})."""
    import sympy

    if (decimals(answer) is None) == (decimals(gold) is None):
        return False
    values = []
    for side in (one, other):
        if not isinstance(side, sympy.Expr) or side.free_symbols:
            return False
        value = side.evalf(30)
        if not isinstance(value, sympy.Float | sympy.Integer | sympy.Rational):
            return False
        values.append(Fraction(str(value)))
    return values_equal(values[0], answer, values[1], gold)
