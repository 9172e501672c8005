"""A small world in which every step of every solution can be checked exactly.

A problem is a two-digit number with six one-digit additions or subtractions; its solution is six
lines, one operation each, left to right:

    47+8-9+7-3+5-7=            the prompt (ends with a line break)
    47+8=55                    a step
    55-9=46                    the next step starts from the last result ...

Every intermediate result has two digits, so every prompt is 16 characters and every line 8. The
right next line is unique: a checker needs no judgement, and neither does a preference pair.
"""

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

TERMS = 6
SMALLEST, LARGEST = 10, 99
LINE_LENGTH = 8  # characters of one step, its line break included
PROMPT_LENGTH = 2 * LINE_LENGTH
SOLUTION_LENGTH = TERMS * LINE_LENGTH

Split = Literal["train", "validation", "held_out"]

_PROMPT = re.compile(rf"(\d\d)((?:[+-]\d){{{TERMS}}})=\n")
_LAST_RESULT = re.compile(r"=(\d+)\n?\Z")


@dataclass(frozen=True)
class Problem:
    """A start value and six signed one-digit terms; all running totals lie in 10..99."""

    start: int
    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return f"{self.start}{''.join(f'{term:+d}' for term in self.terms)}=\n"

    @property
    def totals(self) -> tuple[int, ...]:
        """The six running totals; the last one is the answer."""
        totals = [self.start]
        for term in self.terms:
            totals.append(totals[-1] + term)
        return tuple(totals[1:])

    @property
    def answer(self) -> int:
        return self.totals[-1]

    @property
    def lines(self) -> tuple[str, ...]:
        """The right solution, one step a line; each line ends with its line break."""
        before = (self.start, *self.totals)
        return tuple(
            f"{left}{term:+d}={right}\n"
            for left, term, right in zip(before, self.terms, self.totals, strict=False)
        )

    @property
    def solution(self) -> str:
        return "".join(self.lines)

    @property
    def split(self) -> Split:
        """The split this problem belongs to: a property of its text, whatever seed drew it.

        Of 10 problems 8 are for training, one for validation, one held out. No seed and no order
        of calls can therefore put one problem on two sides.
        """
        bucket = zlib.crc32(self.prompt.encode()) % 10
        return "held_out" if bucket == 0 else "validation" if bucket == 1 else "train"


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


def draw(rng: random.Random) -> Problem:
    """One random problem. A term that would leave 10..99 takes the other sign."""
    start = total = rng.randint(SMALLEST, LARGEST)
    terms = []
    for _ in range(TERMS):
        term = rng.choice((-1, 1)) * rng.randint(1, 9)
        if not SMALLEST <= total + term <= LARGEST:
            term = -term
        terms.append(term)
        total += term
    return Problem(start, tuple(terms))


def stream(split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of distinct problems of one split; the same for the same seed."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, not {split!r}")
    rng, seen = random.Random(seed), set()
    while True:
        problem = draw(rng)
        if problem.split == split and problem not in seen:
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


def split_lines(text: str) -> list[str]:
    """The lines of a solution, each with its line break (the last one possibly without)."""
    return text.splitlines(keepends=True)


def parse_answer(text: str) -> int | None:
    """The number after the last "=", if the text ends there."""
    match = _LAST_RESULT.search(text)
    return int(match[1]) if match else None


def check(problem: Problem, text: str) -> Verdict:
    """Checks a solution line by line against the one right solution."""
    lines, right = split_lines(text), problem.lines
    first_wrong = next(
        (i for i in range(max(len(lines), len(right))) if lines[i : i + 1] != [*right[i : i + 1]]),
        None,
    )
    answer = parse_answer(text)
    return Verdict(answer, answer == problem.answer, first_wrong)
