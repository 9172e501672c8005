"""What worlds of checkable lines share: problems are sums, solutions have one operation a line.

A problem is a two-digit number with signed one-digit terms, a step is `47+8=55` and a line break:
eight characters, because every total has two digits. A problem's text decides its split, and the
right next line is unique, so that a checker needs no judgement, and neither does a preference pair.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, get_args

SMALLEST, LARGEST = 10, 99  # of all totals
LINE_LENGTH = 8  # characters of one step, its line break included

Split = Literal["train", "validation", "held_out"]

_PROMPT = re.compile(r"(\d\d)((?:[+-]\d)+)=\n")
_LAST_RESULT = re.compile(r"=(\d+)\n?\Z")


class Drawn(Protocol):
    """A problem, as far as the stream of problems looks at it."""

    @property
    def split(self) -> Split: ...


P = TypeVar("P", bound=Drawn)


@dataclass(frozen=True)
class Verdict:
    """What the checker found in a solution.

    Attributes:
        answer: the result of the last line, None when there is none to read.
        answer_right: whether that is the problem's answer.
        first_wrong: 0-based line of the first mistake (a wrong, missing or surplus line), or None.
    """

    answer: int | None
    answer_right: bool
    first_wrong: int | None

    @property
    def all_steps_right(self) -> bool:
        return self.first_wrong is None


def split_lines(text: str) -> list[str]:
    """The lines of a solution, each with its line break (the last one possibly without)."""
    return text.splitlines(keepends=True)


def compare(text: str, right: Sequence[str], answer: int) -> Verdict:
    """Compares a solution line by line with the right lines, each with its line break."""
    lines = split_lines(text)
    first_wrong = next(
        (i for i in range(max(len(lines), len(right))) if lines[i : i + 1] != [*right[i : i + 1]]),
        None,
    )
    found = parse_answer(text)
    return Verdict(found, found == answer, first_wrong)


def parse_answer(text: str) -> int | None:
    """The number after the last "=", if the text ends there."""
    match = _LAST_RESULT.search(text)
    return int(match[1]) if match else None


def parse_sum(prompt: str, terms: int) -> tuple[int, tuple[int, ...]]:
    """Start value and signed terms of a prompt; ValueError when it has not so many terms."""
    match = _PROMPT.fullmatch(prompt)
    if match is None or len(match[2]) != 2 * terms:
        raise ValueError(f"not a problem of this world: {prompt!r}")
    return int(match[1]), tuple(int(term) for term in re.findall(r"[+-]\d", match[2]))


def prompt_of(start: int, terms: Sequence[int]) -> str:
    """The text of a problem; it ends with a line break."""
    return f"{start}{''.join(f'{term:+d}' for term in terms)}=\n"


def steps_of(start: int, terms: Sequence[int]) -> tuple[str, ...]:
    """The right steps in the order of the terms, one operation a line."""
    steps = []
    for term in terms:
        steps.append(f"{start}{term:+d}={start + term}\n")
        start += term
    return tuple(steps)


def split_of(prompt: str) -> Split:
    """The split a problem belongs to: a property of its text, whatever seed drew it.

    Of 10 problems 8 are for training, one for validation, one held out. No seed and no order of
    calls can therefore put one problem on two sides.
    """
    bucket = zlib.crc32(prompt.encode()) % 10
    return "held_out" if bucket == 0 else "validation" if bucket == 1 else "train"


def distinct(draw: Callable[[random.Random], P], split: Split, seed: int) -> Iterator[P]:
    """An endless stream of distinct problems of one split; the same for the same seed."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, not {split!r}")
    rng, seen = random.Random(seed), set[P]()
    while True:
        problem = draw(rng)
        if problem.split == split and problem not in seen:
            seen.add(problem)
            yield problem
