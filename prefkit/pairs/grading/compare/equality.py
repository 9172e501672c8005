r"""Do two answers mean the same? Numbers, units and words by rules of this project, the rest by
math-verify; where neither can tell, that is said.

What counts as equal (docs/build_grading.md has the examples):

- numbers: by their exact value. A decimal may stand for a value with more digits when at least
  three decimals and three significant digits are written and each is right (0.333 for 1/3), or when
  the right answer is itself a decimal of two or more of both and the other one rounds to it.
- magnitudes: 5 million is 5,000,000 and 1.5k is 1500; they are never left out as a unit may be.
- percent: the sign may be left out (50 % = 50), or be worked out (50 % = 0.5); 50 is not 0.5.
- units and currencies may be left out on one side; on both they are converted (1 m = 100 cm).
- words are compared without case.
- sets, tuples, intervals, matrices, equations and formulas: by math-verify.

Nothing is evaluated that `sane` has not passed. `compare` has no time limit of its own: run it
where it can be stopped, as `Grader` does.
"""

import re
from fractions import Fraction

from prefkit.pairs.grading.compare.amounts import quantities_equal
from prefkit.pairs.grading.compare.comparison import (
    DIFFERENT,
    EQUAL,
    MAX_LENGTH,
    REFUSED,
    UNREAD,
    Comparison,
    decided,
    sane,
)
from prefkit.pairs.grading.compare.formulas import formulas_equal
from prefkit.pairs.grading.compare.normal_form import normal
from prefkit.pairs.grading.compare.words import names_choice, squeezed, text_equal, value_of_choice
from prefkit.pairs.grading.units import calculates

_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?")
MAX_DIGITS = 4000  # of plain decimals, which need no bounds: Python reads no longer ones
_BASE = re.compile(r"([\dA-F]+)_\{?\(?(\d+)\)?\}?")


def equal(answer: str, gold: str) -> bool:
    """Whether an answer equals the right one; False also where that is undecided."""
    return compare(answer, gold).equal is True


def compare(answer: str, gold: str) -> Comparison:
    """Whether an answer equals the right one.

    Args:
        answer: what a solution states, plain or LaTeX.
        gold: the right answer.
    """
    if answer.strip() == gold.strip():
        return decided(bool(gold.strip()))
    if len(answer) > MAX_LENGTH or len(gold) > MAX_LENGTH:
        return _as_text(answer, gold)
    answer, gold = answer.strip().strip("*"), gold.strip().strip("*")  # bold in Markdown
    if not sane(answer) or not sane(gold):
        return _as_text(answer, gold)
    answer, gold = normal(answer), normal(gold)
    if not answer or not gold:
        return DIFFERENT
    if not sane(answer) or not sane(gold) or squeezed(answer) == squeezed(gold):
        return _as_text(answer, gold)
    return _by_meaning(answer, gold)


def _by_meaning(answer: str, gold: str) -> Comparison:
    """Of answers in normal form, by the first rule that can tell."""
    value, choice = value_of_choice(answer), value_of_choice(gold)
    if value and not names_choice(gold):
        return compare(value, gold)  # (B) 7 for 7
    if choice and not names_choice(answer):  # the value beside the letter, or another spelling
        return EQUAL if compare(answer, choice).equal else UNREAD
    if found := text_equal(answer, gold):
        return found
    if any(calculates(text) for text in (answer, gold)):
        return UNREAD
    for rule in (_bases_equal, quantities_equal, formulas_equal):
        if found := rule(answer, gold):
            return found
    return UNREAD


def _as_text(answer: str, gold: str) -> Comparison:
    if squeezed(answer) == squeezed(gold):
        return EQUAL
    if len(answer) + len(gold) > MAX_DIGITS:
        return REFUSED
    if _DECIMAL.fullmatch(answer) and _DECIMAL.fullmatch(gold):  # of any number of digits
        return decided(Fraction(answer) == Fraction(gold))
    return REFUSED


def _bases_equal(answer: str, gold: str) -> Comparison | None:
    """Numbers in another base than ten: by their digits and base. None where neither is one, or
    where only the base is left out."""
    one, other = (_BASE.fullmatch(text.replace(" ", "")) for text in (answer, gold))
    if one and other:
        return decided(one.groups() == other.groups())
    if one or other:
        digits, plain = (one[1], gold) if one else (other[1], answer)  # type: ignore[index]
        return None if plain == digits else DIFFERENT
    return None
