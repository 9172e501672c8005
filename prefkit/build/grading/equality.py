r"""Do two answers mean the same? Exact arithmetic first, sets and text by their structure, the
rest by math-verify.

What counts as equal (docs/build_grading.md has the examples):

- numbers: by their exact value. A decimal may stand for a value with more digits when at least
  three decimals are written and each is right (0.333 for 1/3), or when the right answer is itself
  a decimal of two or more places and the other one rounds to it.
- percent: the sign may be left out (50 % = 50), or be worked out (50 % = 0.5); 50 is not 0.5.
- units and currencies may be left out on one side; on both they are converted (1 m = 100 cm).
- sets and bare lists are without order, tuples, matrices and intervals with it.
- an equation `x = 5` equals 5; words are compared without case.

Nothing is evaluated that `sane` has not passed. `equal` has no time limit of its own: run it where
it can be stopped, as `Grader` does.
"""

import functools
import itertools
import re
from fractions import Fraction

from prefkit.build.grading.normal_form import normal
from prefkit.build.grading.rationals import Unreadable, evaluate, parse, tokens_of
from prefkit.build.grading.structure import Interval, Items, Matrix, bare_list, structure
from prefkit.build.grading.units import Quantity, quantity

MAX_LENGTH, MAX_DEPTH, MAX_DIGITS, MAX_ITEMS = 600, 12, 60, 64
MAX_POWER_DIGITS = 4  # of an exponent: 2^{2005} is an answer, 2^{10000000} is an attack

_COMMANDS = frozenset(
    """
    frac sqrt pi cdot times div pm mp le ge ne infty cup cap in emptyset begin end sin cos tan cot
    sec csc arcsin arccos arctan log ln exp theta alpha beta gamma delta lambda mu phi omega sigma
    rho epsilon mathbb setminus to ldots dots overline angle lt gt
    """.split()  # noqa: SIM905
)
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_DIGITS = re.compile(r"\d[\d,. ]*")
_POWER = re.compile(r"(.?)\s*(?:\^|\*\*)\s*(\{[^{}]*\}|\([^()]*\)|[^\s{}()])")
_TOWER = re.compile(r"(?:\^|\*\*)[\s{(]*-?[\w.]+[\s)}]*(?:\^|\*\*)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z]")
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s+)?\(?([A-Ha-h])\)?(?:[.:)]\s.*|\s*\).*)?", re.I
)
_BRACKETED_CHOICE = re.compile(r"\(([A-H])\)(?:\s+.*)?")
_ASSIGNMENT = re.compile(
    r"([A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?)\s*(?:=|\\in(?![A-Za-z]))\s*(.+)"
)
_DECIMAL = re.compile(r"[-+]?\d*\.\d+")


def sane(text: str) -> bool:
    r"""Whether an answer may be looked at closely: short, shallow, without huge powers or digits.

    Only the spelling is looked at, in one pass; factorials, power towers, code (`__import__`) and
    commands that no answer needs are refused too.
    """
    if len(text) > MAX_LENGTH or "__" in text or "!" in text or ("'" in text and "(" in text):
        return False
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH or text.count("\\sqrt") > 12 or text.count("\\frac") > 24:
        return False
    if any(sum(c.isdigit() for c in run) > MAX_DIGITS for run in _DIGITS.findall(text)):
        return False
    if re.search(r"\d[eE][-+]?\d{3,}", text) or _TOWER.search(text):
        return False
    return all(_small_power(base, power) for base, power in _POWER.findall(text))


def _small_power(base: str, power: str) -> bool:
    """Whether an exponent is small enough; `base` is the character before it."""
    most = MAX_POWER_DIGITS if base.isdigit() else 2
    return all(len(run) <= most for run in re.findall(r"\d+", power)) and "^" not in power


def equal(answer: str, gold: str) -> bool:
    """Whether an answer equals the right one.

    Args:
        answer: what a solution states, plain or LaTeX.
        gold: the right answer.

    Returns:
        False also where it cannot be decided.
    """
    if len(answer) > MAX_LENGTH or len(gold) > MAX_LENGTH:
        return answer.strip() == gold.strip()
    if answer.strip() == gold.strip():
        return bool(gold.strip())
    answer, gold = answer.strip().strip("*"), gold.strip().strip("*")  # bold in Markdown
    if not sane(answer) or not sane(gold):
        return _squeezed(answer) == _squeezed(gold)
    answer, gold = normal(answer), normal(gold)
    if not answer or not gold or not sane(answer) or not sane(gold):
        return False
    if _squeezed(answer) == _squeezed(gold):
        return True
    return _equal(answer, gold, 0)


def _equal(answer: str, gold: str, depth: int) -> bool:
    """Both in normal form; `depth` counts the sets within sets."""
    if depth > 4:
        return False
    by_text = _text_equal(answer, gold)
    if by_text is not None:
        return by_text
    assigned = _assigned(answer, gold)
    if assigned is None:
        return False
    answer, gold = assigned
    by_value = _quantities_equal(answer, gold)
    if by_value:
        return True
    by_structure = _structures_equal(answer, gold, depth)
    if by_structure is not None:
        return by_structure
    return by_value is None and symbolic_equal(answer, gold)


# ------------------------------------------------------------------------------------------ words


def _squeezed(text: str) -> str:
    """Without case and spaces, but for the spaces between two digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).casefold()


def _text_equal(answer: str, gold: str) -> bool | None:
    """By words or by the letter of a choice; None where the right answer is neither."""
    choice = _BRACKETED_CHOICE.fullmatch(gold) or re.fullmatch(r"([A-H])", gold)
    if choice:
        given = _CHOICE.fullmatch(answer)
        bare = len(gold) == 1 and len(answer.strip()) > 1 and "(" not in answer and given
        if given and not bare:
            return given[1].upper() == choice[1].upper()
        if given:
            return given[1] == choice[1]
        return False if gold.startswith("(") else None
    if _WORDS.fullmatch(gold) or _WORDS.fullmatch(answer):
        return _plain_words(answer) == _plain_words(gold)
    return None


def _plain_words(text: str) -> str:
    text = re.sub(r"[^\w\s+/<>=.-]", "", text.casefold()).replace("-", " ").strip(" .")
    text = re.sub(r"^(?:it is|it's|an|a|the)\s+", "", text)
    return re.sub(r"\s+", " ", text)


def _assigned(answer: str, gold: str) -> tuple[str, str] | None:
    """Both without "x =" where only one has it or both name the same; None = they differ."""
    left, right = _ASSIGNMENT.fullmatch(answer), _ASSIGNMENT.fullmatch(gold)
    if left and right:
        if _squeezed(left[1]) != _squeezed(right[1]):
            return None
        return left[2], right[2]
    if left and not re.search(r"[=<>]|\\[lg]e", gold):
        return left[2], gold
    if right and not re.search(r"[=<>]|\\[lg]e", answer):
        return answer, right[2]
    return answer, gold


# ---------------------------------------------------------------------------------------- numbers


def _quantities_equal(answer: str, gold: str) -> bool | None:
    """By exact values and units; None where one of them is not a number with a unit."""
    one, other = quantity(answer), quantity(gold)
    if one is None or other is None:
        return None
    if one.kind and other.kind and one.kind != other.kind:
        return False
    converted = bool(one.kind and other.kind)
    pairs = itertools.product(
        _readings(one, converted, other.percent), _readings(other, converted, one.percent)
    )
    return any(_values_equal(*a, *b) for a, b in pairs)


def _readings(found: Quantity, converted: bool, both_percent: bool) -> list[tuple[Fraction, str]]:
    """(value, as written) of what the number can mean; "" where it is not as written."""
    try:
        value = evaluate(parse(tokens_of(found.number)))
    except Unreadable:
        return []
    if converted and found.factor != 1:
        return [(value * found.factor, "")]
    readings = [(value, found.number)]
    if found.percent and not both_percent:
        readings.append((value / 100, ""))
    return readings


def _values_equal(one: Fraction, written: str, other: Fraction, gold: str) -> bool:
    if one == other:
        return True
    given, right = _decimals(written), _decimals(gold)
    if right is not None and right >= 2 and (given is None or given > right):
        return abs(one - other) <= Fraction(1, 2 * 10**right)  # the right answer is rounded itself
    if given is not None and given >= 3 and (right is None or right > given):
        step = Fraction(1, 10**given)  # rounded, or cut off after the digits written
        return abs(one - other) <= step / 2 or (
            0 < abs(other) - abs(one) < step and one * other > 0
        )
    return False


def _decimals(written: str) -> int | None:
    """Decimals of a plain decimal number, None for anything else."""
    match = _DECIMAL.fullmatch(written.strip("() "))
    return len(match[0].partition(".")[2]) if match else None


# ------------------------------------------------------------------------------------- structures


def _structures_equal(answer: str, gold: str, depth: int) -> bool | None:
    """Sets, tuples, intervals, matrices by their parts; None where neither has parts."""
    one, other = structure(answer), structure(gold)
    if one is None and other is None:
        return None
    same = functools.partial(_equal, depth=depth + 1)
    match one, other:
        case Matrix(), Matrix():
            flat, flat_gold = one.flat(), other.flat()
            return one.shape == other.shape and _in_order(flat, flat_gold, depth)
        case Interval(), Interval():
            ends = [(one.low, other.low), (one.high, other.high)]
            return one.open == other.open and all(a == b or same(a, b) for a, b in ends)
        case Items(), Items():
            if len(one.parts) != len(other.parts) or len(one.parts) > MAX_ITEMS:
                return False
            if "tuple" in (one.kind, other.kind):
                return {one.kind, other.kind} != {"set", "tuple"} and _in_order(
                    one.parts, other.parts, depth
                )
            if "union" in (one.kind, other.kind) and one.kind != other.kind:
                return False
            return _without_order(one.parts, other.parts, depth)
    lone, items = (answer, other) if one is None else (gold, one)
    if isinstance(items, Items) and items.kind == "set" and len(items.parts) == 1:
        return same(lone, items.parts[0]) if one is None else same(items.parts[0], lone)
    if isinstance(items, Items) and items.kind == "list" and bare_list(lone):
        return _without_order(bare_list(lone), items.parts, depth)
    return False


def _in_order(answer: list[str], gold: list[str], depth: int) -> bool:
    return len(answer) == len(gold) <= MAX_ITEMS and all(
        a == g or _equal(a, g, depth + 1) for a, g in zip(answer, gold, strict=True)
    )


def _without_order(answer: list[str], gold: list[str], depth: int) -> bool:
    left = list(gold)
    if len(answer) != len(left) or len(left) > MAX_ITEMS:
        return False
    for part in answer:
        found = next((x for x in left if x == part or _equal(part, x, depth + 1)), None)
        if found is None:
            return False
        left.remove(found)
    return True


# -------------------------------------------------------------------------------------- formulas


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

    if (_decimals(answer) is None) == (_decimals(gold) is None):
        return False
    values = []
    for side in (one, other):
        if not isinstance(side, sympy.Expr) or side.free_symbols:
            return False
        value = side.evalf(30)
        if not isinstance(value, sympy.Float | sympy.Integer | sympy.Rational):
            return False
        values.append(Fraction(str(value)))
    return _values_equal(values[0], answer, values[1], gold)
