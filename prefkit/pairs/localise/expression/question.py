"""Questions that are an arithmetic expression themselves: 47+8-9+7-3+5-7=

A right solution is then known without a reference: each step takes the number so far and the next
term, from left to right, and the last step gives the answer. Brackets are worked out first. Other
orders are right as well, see `prefkit.pairs.localise.expression.orders`.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from prefkit.pairs.grading.find.answers import final_answer
from prefkit.pairs.grading.rationals import (
    Node,
    Number,
    Product,
    Sum,
    Token,
    Unreadable,
    evaluate,
    leaves,
    parse,
    tokens_of,
    value_of,
)
from prefkit.pairs.localise.arithmetic.calculations import false_calculation
from prefkit.pairs.localise.verdict import Verdict

_QUESTION = re.compile(r"\s*([\d\s.,+\-*/()×÷−·]+?)\s*=?\s*[?_]*\s*")
_BARE = re.compile(r"[\d\s.,+\-*/()×÷−·=]+")
_CHARACTERS = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*", " ": None, "\t": None})


def is_expression(question: str) -> bool:
    """Whether a question is one expression of two numbers or more, and nothing else."""
    return tree_of(question) is not None


def is_plain(steps: Sequence[str]) -> bool:
    """Whether a solution is written as bare calculations, one a step ("47+8=55"); a line
    that states the answer may follow ("#### 55", "A: 55")."""
    body = list(steps[: len(steps) - closing(steps)])
    return bool(body) and all(_is_bare(step) and "\n" not in step.strip() for step in body)


def solution_of(question: str) -> str | None:
    """A right solution of an expression, a calculation a line; None where it has no value."""
    tree = tree_of(question)
    try:
        return None if tree is None else "\n".join(right_steps(tree))
    except Unreadable:
        return None


def terms_of(question: str) -> int:
    """Numbers that an expression holds; 0 where the question is none."""
    tree = tree_of(question)
    return 0 if tree is None else len(leaves(tree))


def first_wrong(question: str, steps: Sequence[str]) -> Verdict:
    """The first step that differs from the solution from the left at the same index.

    Args:
        question: an expression with or without "=" at its end, see `is_expression`.
        steps: one calculation each ("47+8=55"), see `is_plain`; spaces do not count, everything
            else does.

    Returns:
        The first wrong, missing or surplus step; a missing step has the index after the last.
        Only false arithmetic and an early end are called certain: a true calculation may belong to
        another way. Where the question is no expression, step None.
    """
    tree = tree_of(question)
    if tree is None:
        return Verdict(None, "the question is not an expression")
    try:
        right = right_steps(tree)
    except Unreadable:
        return Verdict(None, "the question's expression has no value")
    body = steps[: len(steps) - closing(steps)]
    for index, (step, expected) in enumerate(zip(body, right, strict=False)):
        written = step.removesuffix("\n").translate(_CHARACTERS)
        if written != expected:
            is_last = index == len(steps) - 1
            return Verdict(index, _difference(step, written, expected, is_last))
    if len(body) > len(right):
        return Verdict(len(right), "the solution goes on after its last step (likely)")
    if len(body) < len(right):
        trust = "certain" if len(body) == len(steps) else "likely"  # it may be done in the mind
        return Verdict(len(body), f"the step {right[len(body)]} is missing ({trust})")
    result = value_of(right[-1].rpartition("=")[2])
    for index in range(len(body), len(steps)):
        stated = final_answer(steps[index])
        if stated is not None and value_of(stated.replace("$", "").rstrip("%")) != result:
            return Verdict(index, "it states another answer than its last step (likely)")
    return Verdict(None, "every step is right (certain)")


def closing(steps: Sequence[str]) -> int:
    """How many steps at the end calculate nothing and hold words: they state the answer."""
    count = 0
    for step in reversed(steps):
        if "=" in step or _is_bare(step):
            break
        count += 1
    return count


def _is_bare(step: str) -> bool:
    return _BARE.fullmatch(step.strip()) is not None


def _difference(step: str, written: str, expected: str, is_last: bool) -> str:
    """What is wrong with a step that is not the expected one."""
    if is_last and not step.endswith("\n") and expected.startswith(written):
        return f"the solution is cut off in the step {expected} (likely)"
    false = false_calculation(step)
    if false is not None:
        return f"false arithmetic: {false.text}, the right step is {expected} (certain)"
    return f"the right step is {expected} (likely)"


def right_steps(tree: Node) -> list[str]:
    """The right solution, a calculation of two numbers a step, brackets and products first.

    Raises:
        Unreadable: the expression divides by zero.
    """
    lines: list[str] = []
    _solve(tree, lines)
    return lines


def tree_of(question: str) -> Node | None:
    """The tree of a question that is an expression of two numbers or more, else None."""
    match = _QUESTION.fullmatch(question)
    if match is None:
        return None
    try:
        tokens: list[Token] = tokens_of(match[1])
        tree = parse(tokens)
    except Unreadable:
        return None
    return tree if isinstance(tree, Sum | Product) and len(_operands(tree)) > 1 else None


def _operands(tree: Sum | Product) -> tuple[tuple[int, Node], ...]:
    return tree.terms if isinstance(tree, Sum) else tree.factors


def _solve(node: Node, lines: list[str]) -> Fraction:
    if isinstance(node, Number):
        return evaluate(node)
    if not isinstance(node, Sum | Product):
        raise Unreadable("a power")
    signs = "+-" if isinstance(node, Sum) else "*/"
    operands = _operands(node)
    (sign, first), rest = operands[0], operands[1:]
    total = _solve(first, lines) * (sign if isinstance(node, Sum) else 1)
    for sign, operand in rest:
        value = _solve(operand, lines)
        before = total
        if isinstance(node, Sum):
            total += sign * value
        elif sign > 0:
            total *= value
        else:
            total = evaluate(Product(((1, Number(total)), (-1, Number(value)))))
        line = f"{_written(before)}{signs[sign < 0]}{_bracketed(value)}={_written(total)}"
        lines.append(line)
    return total


def _written(value: Fraction) -> str:
    """3, -3, 2.5; a fraction that no decimal gives as 1/3."""
    if value.denominator == 1:
        return str(value.numerator)
    tenths = value
    for decimals in range(1, 13):
        tenths *= 10
        if tenths.denominator == 1:
            return f"{float(value):.{decimals}f}"
    return f"{value.numerator}/{value.denominator}"


def _bracketed(value: Fraction) -> str:
    return f"({_written(value)})" if value < 0 else _written(value)
