"""A normal form of an answer: solutions that state the same one fall into one group.

Comparing every answer with every other one takes as many questions to a worker as there are pairs,
and "equal" has no groups anyway (5 equals 5 cm and 5 m, which differ). A key is cheap, needs no
worker, and two answers with one key are equal.
"""

import hashlib

from prefkit.pairs.grading.compare.comparison import MAX_LENGTH, sane
from prefkit.pairs.grading.compare.normal_form import normal
from prefkit.pairs.grading.compare.words import squeezed
from prefkit.pairs.grading.units import quantity

MAX_KEY = 120  # characters; a longer key is replaced by its hash


def group_key(answer: str) -> str:
    r"""The normal form of an answer.

    Args:
        answer: what a solution states; any text, of any length.

    Returns:
        At most `MAX_KEY` characters. 7, 7.0, $7 and "7 apples" have one key, 1/2 and
        \frac{1}{2}, 100 cm and 1 m, Yes and yes. Answers (but for blank ones, which equal nothing)
        with one key are `equality.equal`, in either order. The converse does not hold: sets in
        another order, formulas, rounded decimals and a unit that only one side names keep keys of
        their own, though `equal` may call them equal.
    """
    # Each kind has a prefix of its own and follows the branch of `equal` that decides it.
    if len(answer) > MAX_LENGTH:
        return _bounded("long:" + answer.strip())
    plain = answer.strip().strip("*")
    if not sane(plain):
        return _bounded("text:" + squeezed(plain))
    text = normal(plain)
    if not text or not sane(text):
        return _bounded("raw:" + answer.strip())
    return _bounded(_number_key(text) or "form:" + squeezed(text))


def _number_key(text: str) -> str | None:
    """Value and kind of unit of a number in normal form; None for any other answer.

    Dollars count as bare numbers do ($7 is 7), every other known unit and cents keep to their own:
    €7 and $7 both equal 7 and not each other.
    """
    found = quantity(text)
    if found is None or found.value is None:
        return None
    if found.telling:
        return f"number:{found.value}:{found.telling}"
    if found.kind is None or (found.kind == "money $" and found.factor == 1):
        return f"number:{found.value}"
    small = "cents:" if found.kind == "money $" else ""
    return f"number:{small}{found.kind}:{found.value * found.factor}"


def _bounded(key: str) -> str:
    if len(key) <= MAX_KEY:
        return key
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
