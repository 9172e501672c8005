"""Long chains of checkable arithmetic, each solved in one of two ways.

A problem is a two-digit number with fourteen signed one-digit terms. A solution says in its first
line whether it takes the terms from left to right (">") or from right to left ("<"), and then has
one operation a line:

    47+8-9 … +7=        the prompt (ends with a line break)
    >                   the way
    47+8=55             a step
    55-9=46             the next step starts from the last result ...

Two samples that went different ways share no line, as two solutions of one question in real text do
not; inside one way the right next line is unique, so that a checker needs no judgement. The demo's
world (prefkit/demo/arithmetic.py) is shorter and has one way only.
"""

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

TERMS = 14
SMALLEST, LARGEST = 10, 99
LINE_LENGTH = 8  # characters of one step, its line break included
PROMPT_LENGTH = 2 + 2 * TERMS + 2
WAYS = (">", "<")
SOLUTION_LENGTH = 2 + TERMS * LINE_LENGTH  # the line that tells the way, and the steps

Split = Literal["train", "validation", "test"]

_PROMPT = re.compile(rf"(\d\d)((?:[+-]\d){{{TERMS}}})=\n")
_LAST_RESULT = re.compile(r"=(\d+)\n?\Z")


@dataclass(frozen=True)
class Problem:
    """A start value and fourteen signed one-digit terms; all totals of both ways lie in 10..99."""

    start: int
    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return f"{self.start}{''.join(f'{term:+d}' for term in self.terms)}=\n"

    @property
    def answer(self) -> int:
        return self.start + sum(self.terms)

    def totals(self, way: str) -> tuple[int, ...]:
        """The running totals of one way, the start value first and the answer last."""
        totals = [self.start]
        for term in self.terms if way == ">" else self.terms[::-1]:
            totals.append(totals[-1] + term)
        return tuple(totals)

    def lines(self, way: str) -> tuple[str, ...]:
        """The right solution of one way, line by line; each line ends with its line break."""
        totals, terms = self.totals(way), self.terms if way == ">" else self.terms[::-1]
        steps = zip(totals, terms, totals[1:], strict=False)
        return (f"{way}\n", *(f"{left}{term:+d}={right}\n" for left, term, right in steps))

    def solution(self, way: str) -> str:
        return "".join(self.lines(way))

    @property
    def possible(self) -> bool:
        """Whether every total of both ways has two digits."""
        return all(SMALLEST <= total <= LARGEST for way in WAYS for total in self.totals(way))

    @property
    def split(self) -> Split:
        """The split this problem belongs to: a property of its text, whatever seed drew it.

        Of 10 problems 8 are for training, one for validation, one for the test.
        """
        bucket = zlib.crc32(self.prompt.encode()) % 10
        return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


@dataclass(frozen=True)
class Verdict:
    """What the checker found in a solution.

    Attributes:
        answer: the result of the last line, None when there is none to read.
        answer_right: whether that is the problem's answer.
        first_wrong: 0-based line of the first mistake (a wrong, missing or surplus line; line 0
            tells the way), or None.
    """

    answer: int | None
    answer_right: bool
    first_wrong: int | None

    @property
    def all_steps_right(self) -> bool:
        return self.first_wrong is None


def stream(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of distinct problems of one split; the same for the same seed."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, not {split!r}")
    rng, seen = random.Random(seed), set()
    while True:
        start = rng.randint(SMALLEST, LARGEST)
        terms = tuple(rng.choice((-1, 1)) * rng.randint(1, 9) for _ in range(TERMS))
        problem = Problem(start, terms)
        if problem.split == split and problem.possible and problem not in seen:
            seen.add(problem)
            yield problem


def problems(count: int, split: Split, seed: int) -> list[Problem]:
    """The first `count` problems of `stream(split, seed)`."""
    source = stream(split, seed)
    return [next(source) for _ in range(count)]


def parse_prompt(prompt: str) -> Problem:
    """The problem a prompt states; ValueError when the text is no prompt of this world."""
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise ValueError(f"not a problem of this world: {prompt!r}")
    return Problem(int(match[1]), tuple(int(term) for term in re.findall(r"[+-]\d", match[2])))


def parse_answer(text: str) -> int | None:
    """The number after the last "=", if the text ends there."""
    match = _LAST_RESULT.search(text)
    return int(match[1]) if match else None


def check(problem: Problem, text: str) -> Verdict:
    """Checks a solution line by line against the one right solution of the way it takes."""
    lines = text.splitlines(keepends=True)
    right = problem.lines("<" if lines[:1] == ["<\n"] else ">")
    first_wrong = next(
        (i for i in range(max(len(lines), len(right))) if lines[i : i + 1] != [*right[i : i + 1]]),
        None,
    )
    answer = parse_answer(text)
    return Verdict(answer, answer == problem.answer, first_wrong)
