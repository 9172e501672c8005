"""Which tokens of a wrong solution are wrong, and how well scores find them.

The small world knows the truth: a token is wrong where it is a digit of a result that differs from
the right one, given what stands before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefkit.demo import arithmetic as world
from prefkit.demo.lines import split_lines

DOUBTFUL = 0.9


@dataclass(frozen=True)
class Solution:
    """A sampled solution with its wrong tokens (characters here).

    Attributes:
        first: (n,) bool, digits of the first wrong line's result that differ from the right ones.
        any: (n,) bool, the same in every line, given the operands as the line has them.
    """

    prompt: str
    text: str
    first: np.ndarray
    any: np.ndarray


@dataclass(frozen=True)
class Found:
    """What was measured of one pair of models at one b.

    Attributes:
        auc, auc_any: of 1 − s for `Solution.first` and `Solution.any`.
        doubtful: as `auc_any`, among the tokens to which the start model gave less than 0.9.
        wrong, other: mean s of the first wrong line's wrong tokens, and of all others.
        lowest: share of solutions whose token of the lowest s is a wrong one (of any line).
    """

    auc: float
    auc_any: float
    doubtful: float
    wrong: float
    other: float
    lowest: float


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney).

    Args:
        scores: (n,) high where positive is expected.
        positive: (n,) bool.
    """
    values, place = np.unique(scores, return_inverse=True)
    counts = np.bincount(place, minlength=len(values))
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each value, from 1
    p = int(positive.sum())
    total = float(ranks[place][positive].sum())
    return (total - p * (p + 1) / 2) / (p * (len(scores) - p))


def marked(problem: world.Problem, text: str) -> Solution | None:
    """The solution with its wrong tokens; None where the first mistake is no wrong result."""
    verdict = world.check(problem, text)
    lines, at = split_lines(text), verdict.first_wrong
    if at is None or at >= min(len(lines), len(problem.lines)):
        return None
    right = problem.lines[at]
    front = right.index("=") + 1
    if len(lines[at]) != len(right) or lines[at][:front] != right[:front]:
        return None
    first, every = np.zeros(len(text), bool), np.zeros(len(text), bool)
    start = 0
    for place, line in enumerate(lines):
        wrong = _wrong_digits(line)
        every[start : start + len(line)] = wrong
        if place == at:
            first[start : start + len(line)] = wrong
        start += len(line)
    return Solution(problem.prompt, text, first, every) if first.any() else None


def _wrong_digits(line: str) -> np.ndarray:
    """(len(line),) bool: digits of the result that differ from that of the line's own operands."""
    wrong = np.zeros(len(line), bool)
    left, equals, result = line.rstrip("\n").partition("=")
    try:
        right = str(int(left[:2]) + int(left[2:]))
    except ValueError:
        return wrong
    if equals and len(right) == len(result):
        for i, (a, b) in enumerate(zip(right, result, strict=True)):
            wrong[len(left) + 1 + i] = a != b
    return wrong


def measure(solutions: Sequence[Solution], s: np.ndarray, start: np.ndarray) -> Found:
    """How well 1 − s ranks the wrong tokens.

    Args:
        s: (tokens of all solutions,) scores.
        start: (tokens of all solutions,) probabilities under the start model.
    """
    first = np.concatenate([one.first for one in solutions])
    every = np.concatenate([one.any for one in solutions])
    ends = np.cumsum([len(one.text) for one in solutions])[:-1]
    lowest = [
        bool(one.any[int(np.argmin(part))])
        for one, part in zip(solutions, np.split(s, ends), strict=True)
    ]
    return Found(
        auc=area(-s, first),
        auc_any=area(-s, every),
        doubtful=area(-s[start < DOUBTFUL], every[start < DOUBTFUL]),
        wrong=float(s[first].mean()),
        other=float(s[~first].mean()),
        lowest=float(np.mean(lowest)),
    )
