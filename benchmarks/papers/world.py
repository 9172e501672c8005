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
world (prefkit/demo/arithmetic.py) is shorter and has one way only; what both share is in
prefkit/demo/lines.py.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from prefkit.demo import lines
from prefkit.demo.lines import LARGEST, LINE_LENGTH, SMALLEST, Split, Verdict

TERMS = 14
PROMPT_LENGTH = 2 + 2 * TERMS + 2
WAYS = (">", "<")
SOLUTION_LENGTH = 2 + TERMS * LINE_LENGTH  # the line that tells the way, and the steps


@dataclass(frozen=True)
class Problem:
    """A start value and fourteen signed one-digit terms; all totals of both ways lie in 10..99."""

    start: int
    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return lines.prompt_of(self.start, self.terms)

    @property
    def answer(self) -> int:
        return self.start + sum(self.terms)

    def terms_of(self, way: str) -> tuple[int, ...]:
        """The terms in the order in which one way takes them."""
        return self.terms if way == ">" else self.terms[::-1]

    def totals(self, way: str) -> tuple[int, ...]:
        """The running totals of one way, the start value first and the answer last."""
        return tuple(accumulate(self.terms_of(way), initial=self.start))

    def lines(self, way: str) -> tuple[str, ...]:
        """The right solution of one way, line by line; each line ends with its line break."""
        return (f"{way}\n", *lines.steps_of(self.start, self.terms_of(way)))

    def solution(self, way: str) -> str:
        return "".join(self.lines(way))

    @property
    def possible(self) -> bool:
        """Whether every total of both ways has two digits."""
        return all(SMALLEST <= total <= LARGEST for way in WAYS for total in self.totals(way))

    @property
    def split(self) -> Split:
        """The split this problem belongs to: a property of its text, whatever seed drew it."""
        return lines.split_of(self.prompt)


def draw(rng: random.Random) -> Problem:
    """One random problem: the first possible one of those that the generator gives."""
    while True:
        start = rng.randint(SMALLEST, LARGEST)
        terms = tuple(rng.choice((-1, 1)) * rng.randint(1, 9) for _ in range(TERMS))
        if (problem := Problem(start, terms)).possible:
            return problem


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
    """Checks a solution line by line against the one right solution of the way it takes.

    The first line tells the way: line 0 of the verdict.
    """
    way = "<" if lines.split_lines(text)[:1] == ["<\n"] else ">"
    return lines.compare(text, problem.lines(way), problem.answer)
