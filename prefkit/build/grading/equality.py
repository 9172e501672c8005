r"""Do two answers mean the same? Exact arithmetic first, sets and text by their structure, the
rest by math-verify.

What counts as equal (docs/build_grading.md has the examples):

- numbers: by their exact value. A decimal may stand for a value with more digits when at least
  three decimals and three significant digits are written and each is right (0.333 for 1/3), or when
  the right answer is itself a decimal of two or more of both and the other one rounds to it.
- magnitudes: 5 million is 5,000,000 and 1.5k is 1500; they are never left out as a unit may be.
- percent: the sign may be left out (50 % = 50), or be worked out (50 % = 0.5); 50 is not 0.5.
- units and currencies may be left out on one side; on both they are converted (1 m = 100 cm).
- sets and bare lists are without order, tuples, matrices and intervals with it.
- an equation `x = 5` equals 5; words are compared without case.

Nothing is evaluated that `sane` has not passed. `equal` has no time limit of its own: run it where
it can be stopped, as `Grader` does.
"""

import functools

from prefkit.build.grading.amounts import quantities_equal
from prefkit.build.grading.bounds import MAX_LENGTH, sane
from prefkit.build.grading.formulas import symbolic_equal
from prefkit.build.grading.normal_form import normal
from prefkit.build.grading.structure import Interval, Items, Matrix, bare_list, structure
from prefkit.build.grading.words import assigned, squeezed, text_equal

MAX_ITEMS = 64  # of a set, a list or a matrix


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
        return squeezed(answer) == squeezed(gold)
    answer, gold = normal(answer), normal(gold)
    if not answer or not gold or not sane(answer) or not sane(gold):
        return False
    if squeezed(answer) == squeezed(gold):
        return True
    return _equal(answer, gold, 0)


def _equal(answer: str, gold: str, depth: int) -> bool:
    """Both in normal form; `depth` counts the sets within sets."""
    if depth > 4:
        return False
    by_text = text_equal(answer, gold)
    if by_text is not None:
        return by_text
    named = assigned(answer, gold)
    if named is None:
        return False
    answer, gold = named
    by_value = quantities_equal(answer, gold)
    if by_value:
        return True
    by_structure = _structures_equal(answer, gold, depth)
    if by_structure is not None:
        return by_structure
    return by_value is None and symbolic_equal(answer, gold)


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
