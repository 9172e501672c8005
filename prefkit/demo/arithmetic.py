"""A small world in which every step of every solution can be checked exactly.

A problem is a two-digit number with six one-digit additions or subtractions; its solution is six
lines, one operation each, left to right:

    47+8-9+7-3+5-7=            the prompt (ends with a line break)
    47+8=55                    a step
    55-9=46                    the next step starts from the last result ...

Every intermediate result has two digits, so every prompt is 16 characters and every line 8.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from prefkit.demo import lines
from prefkit.demo.lines import LARGEST, LINE_LENGTH, SMALLEST, Split, Verdict

TERMS = 6
PROMPT_LENGTH = 2 * LINE_LENGTH
SOLUTION_LENGTH = TERMS * LINE_LENGTH


@dataclass(frozen=True)
class Problem:
    """A start value and six signed one-digit terms; all running totals lie in 10..99."""

    start: int
    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return lines.prompt_of(self.start, self.terms)

    @property
    def totals(self) -> tuple[int, ...]:
        """The six running totals; the last one is the answer."""
        return tuple(accumulate(self.terms, initial=self.start))[1:]

    @property
    def answer(self) -> int:
        return self.totals[-1]

    @property
    def lines(self) -> tuple[str, ...]:
        """The right solution, one step a line; each line ends with its line break."""
        return lines.steps_of(self.start, self.terms)

    @property
    def solution(self) -> str:
        return "".join(self.lines)

    @property
    def split(self) -> Split:
        """The split this problem belongs to: a property of its text, whatever seed drew it."""
        return lines.split_of(self.prompt)


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
    return lines.distinct(draw, split, seed)


def problems(count: int, split: Split, seed: int) -> list[Problem]:
    """The first `count` problems of `stream(split, seed)`."""
    source = stream(split, seed)
    return [next(source) for _ in range(count)]


def parse_prompt(prompt: str) -> Problem:
    """The problem a prompt states; ValueError when the text is no prompt of this world."""
    return Problem(*lines.parse_sum(prompt, TERMS))


def check(problem: Problem, text: str) -> Verdict:
    """Checks a solution line by line against the one right solution."""
    return lines.compare(text, problem.lines, problem.answer)
