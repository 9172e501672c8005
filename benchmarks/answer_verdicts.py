r"""How often is a right answer called right, a wrong one right, and what stays undecided?

    python -m benchmarks.answer_verdicts forms math500.jsonl
    python -m benchmarks.answer_verdicts pairs math500.jsonl --count 10000 --seed 0
    python -m benchmarks.answer_verdicts gsm8k model_solutions.jsonl

`forms`: every answer of a MATH file, stated in nine ways at the end of its own solution (whose box
is cut off), and the same with the answer of another row. `pairs`: pairs of different answers;
printed is every pair that is called equal, to be read. `gsm8k`: the solutions of
`example_model_solutions.jsonl` (github.com/openai/grade-school-math, MIT) against their labels.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.localiser_gsm8k import read
from prefkit.pairs.grading.grader import Grader
from prefkit.pairs.grading.verdicts import Grade

FORMS: dict[str, Callable[[str], str]] = {
    "boxed": lambda a: f"Therefore, $x = \\boxed{{{a}}}.$",
    "sentence": lambda a: f"Therefore, the answer is ${a}$.",
    "few-shot": lambda a: f"Final Answer: The final answer is ${a}$. I hope it is correct.",
    "**Answer:**": lambda a: f"**Answer:** \\({a}\\)",
    "Answer:": lambda a: f"Answer: ${a}$",
    "bare": lambda a: f"${a}$",
    "dfrac": lambda a: "The answer is $" + re.sub(r"\\c?frac", r"\\dfrac", a) + "$.",
    "thought": lambda a: f"<think>Perhaps \\boxed{{17}}?</think>\nThe answer is ${a}$.",
    "no formula": lambda a: f"The answer is {a}.",
}


def rows_of(path: Path) -> list[tuple[str, str]]:
    """(answer, what precedes it in its solution) of a MATH file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["extra"] for line in lines]
    return [(row["answer"], front_of(row["solution"])) for row in found]


def front_of(solution: str) -> str:
    """The solution up to a full stop before its box, where no formula is open."""
    before = solution[: max(0, solution.find("\\boxed"))]
    for stop in reversed(list(re.finditer(r"\.\s+|\n\n", before))):
        part = before[: stop.end()]
        pairs = (("\\[", "\\]"), ("\\begin{", "\\end{"), ("$", ""), ("[asy]", "[/asy]"))
        if all(part.count(a) == part.count(b) if b else part.count(a) % 2 == 0 for a, b in pairs):
            return part.rstrip() + "\n\n"
    return ""


def shuffled(answers: Sequence[str], seed: int) -> list[str]:
    """The answer of another row for each row, never the same text."""
    draw, others = random.Random(seed), list(answers)
    draw.shuffle(others)
    for place, answer in enumerate(answers):
        while others[place] == answer:
            swap = draw.randrange(len(others))
            if others[swap] != answer and answers[swap] != others[place]:
                others[place], others[swap] = others[swap], others[place]
    return others


def count(grades: Sequence[Grade]) -> str:
    right = sum(grade.correct for grade in grades)
    decided = sum(grade.decided for grade in grades)
    return f"{right} | {decided - right} | {len(grades) - decided}"


def forms(path: Path, seed: int, show: bool) -> None:
    rows = rows_of(path)
    answers = [answer for answer, _ in rows]
    others = shuffled(answers, seed)
    print("| form | right | wrong | undecided | of shuffled: right | wrong | undecided |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with Grader(workers=2, seconds=5.0) as grader:
        for name, form in FORMS.items():
            fronts = [front for _, front in rows]
            given = [f + form(a) for f, a in zip(fronts, answers, strict=True)]
            swapped = [f + form(a) for f, a in zip(fronts, others, strict=True)]
            grades = grader.grade_many(list(zip(given, answers, strict=True)))
            wrong = grader.grade_many(list(zip(swapped, answers, strict=True)))
            print(f"| {name} | {count(grades)} | {count(wrong)} |", flush=True)
            if show:
                for answer, grade in zip(answers, grades, strict=True):
                    if not grade.correct:
                        print(f"    {answer!r} read as {grade.answer!r}: {grade.how} {grade.note}")
                for answer, other, grade in zip(answers, others, wrong, strict=True):
                    if grade.correct or not grade.decided:
                        print(
                            f"    {other!r} for {answer!r}, read as {grade.answer!r}: {grade.how}"
                        )


def pairs(path: Path, count_: int, seed: int, show: bool) -> None:
    answers = sorted({answer for answer, _ in rows_of(path)})
    draw = random.Random(seed)
    drawn: dict[tuple[str, str], None] = {}
    while len(drawn) < count_:
        one, other = draw.sample(answers, 2)
        drawn[one, other] = None
    items = [(f"\\boxed{{{one}}}", other) for one, other in drawn]
    with Grader(workers=2, seconds=5.0) as grader:
        grades = grader.grade_many(items)
    print(f"{len(items)} pairs of different texts: right | wrong | undecided: {count(grades)}")
    for (one, other), grade in zip(drawn, grades, strict=True):
        if show and not grade.decided:
            print(f"{grade.how}: {one!r} for {other!r}")
        if grade.correct:
            print(f"equal: {one!r} and {other!r}")
    print(Counter(grade.how for grade in grades))


def gsm8k(path: Path, show: bool) -> None:
    solutions = list(read(path))
    with Grader(workers=2, seconds=5.0) as grader:
        grades = grader.grade_many([(s.text, s.truth.rpartition("A:")[2]) for s in solutions])
    for label in (True, False):
        part = [g for s, g in zip(solutions, grades, strict=True) if s.right is label]
        print(f"labelled {label}: right | wrong | undecided: {count(part)}")
    print(Counter(grade.how for grade in grades))
    for solution, grade in zip(solutions, grades, strict=True):
        if show and (not grade.decided or grade.correct != solution.right):
            print(f"{solution.name}: {solution.right} {grade}\n{solution.text}\n{solution.truth}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("forms", "pairs", "gsm8k"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="what is not called as it should be")
    options = parser.parse_args()
    if options.what == "forms":
        forms(options.file, options.seed, options.show)
    elif options.what == "pairs":
        pairs(options.file, options.count, options.seed, options.show)
    else:
        gsm8k(options.file, options.show)


if __name__ == "__main__":
    main()
