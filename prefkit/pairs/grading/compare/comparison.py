"""What comes of comparing two answers, and which answers may be looked at closely at all.

Nothing is evaluated that `sane` has not passed. It looks at the spelling alone, in one pass, so
that the check itself is safe for any text.
"""

import re
from typing import NamedTuple


class Comparison(NamedTuple):
    """Whether two answers are equal; None = undecided, and then why.

    `why`: "refused" (too long or too large to be looked at), "unread" (words or a formula that
    cannot be read, or not beside the other answer), "disagree" (math-verify says one thing, a rule
    of this project another), "rounded" (it rounds to the right answer, but has other digits),
    "" = decided.
    """

    equal: bool | None
    why: str = ""


EQUAL, DIFFERENT = Comparison(True), Comparison(False)
REFUSED, UNREAD = Comparison(None, "refused"), Comparison(None, "unread")
DISAGREE, ROUNDED = Comparison(None, "disagree"), Comparison(None, "rounded")


def decided(is_equal: bool) -> Comparison:
    return EQUAL if is_equal else DIFFERENT


MAX_LENGTH, MAX_DEPTH, MAX_DIGITS = 600, 12, 60
MAX_POWER_DIGITS = 4  # of an exponent: 2^{2005} is an answer, 2^{10000000} is an attack

_DIGITS = re.compile(r"\d[\d,. ]*")
_SIGNS = re.compile(r"(?:[-+*/^]\s?){6}")
_POWER = re.compile(r"(.?)\s*(?:\^|\*\*)\s*(\{[^{}]*\}|\([^()]*\)|[^\s{}()])")
_TOWER = re.compile(r"(?:\^|\*\*)[\s{(]*-?[\w.]+[\s)}]*(?:\^|\*\*)")


def sane(text: str) -> bool:
    r"""Whether an answer may be looked at closely: short, shallow, without huge powers or digits.

    Factorials, power towers and code (`__import__`) are refused too.
    """
    if len(text) > MAX_LENGTH or "__" in text or ("'" in text and "(" in text):
        return False
    return bounded(text)


def bounded(text: str) -> bool:
    """Whether a text's formulas are shallow, without factorials, huge powers or many digits."""
    if _SIGNS.search(text) or "!" in re.sub(r"\\!|!=", "", text):
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
