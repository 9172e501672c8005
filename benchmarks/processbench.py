"""Localisers against people: ProcessBench's labels of the first wrong step (arXiv 2412.06559).

    python -m benchmarks.processbench gsm8k.json --solutions gsm8k/train.jsonl gsm8k/test.jsonl
    python -m benchmarks.processbench gsm8k.json --solutions … --judge NAME --judge_server URL

The file is one of ProcessBench's (huggingface.co/datasets/Qwen/ProcessBench, Apache-2.0): solutions
of twelve models in steps, with the first wrong step as several annotators agreed, −1 for none. It
holds no right solutions: these come from the questions' own files, read as a build reads them.

Counted are, of the solutions with a wrong answer, the verdicts on the labelled step and within one
step of it (undecided = missed), and, of those with a right answer, how many are left out by the
localiser as a filter.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from benchmarks.localisers import ask
from prefkit.pairs.asking import Asking, together
from prefkit.pairs.engines.base import Engine, Request
from prefkit.pairs.localise.judge import judge
from prefkit.pairs.localise.program.locate import locate
from prefkit.pairs.localise.verdict import Verdict
from prefkit.pairs.pipelines.evaluate import wilson
from prefkit.pairs.questions import read_questions


class Case(NamedTuple):
    name: str
    question: str
    steps: list[str]
    truth: int | None
    answer_is_right: bool
    solution: str | None


Localiser = Callable[[Sequence[Case]], list[Verdict]]


def key_of(question: str) -> str:
    return " ".join(question.split())


def read(path: Path, solutions: dict[str, str]) -> list[Case]:
    """The labelled solutions, each with a right one where its question has one."""
    return [
        Case(
            row["id"],
            row["problem"],
            [step + "\n" for step in row["steps"]],
            None if row["label"] < 0 else row["label"],
            row["final_answer_correct"],
            solutions.get(key_of(row["problem"])),
        )
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def right_solutions(paths: Sequence[str], answer_field: str, solution_field: str) -> dict[str, str]:
    found = {}
    for path in paths:
        fields = {"answer_field": answer_field, "solution_field": solution_field}
        for question in read_questions(path, **fields):
            if question.solution:
                found[key_of(question.text)] = question.solution
    return found


def by_program(cases: Sequence[Case]) -> list[Verdict]:
    return [locate(case.question, case.steps, solution=case.solution) for case in cases]


def without_solution(cases: Sequence[Case]) -> list[Verdict]:
    return [locate(case.question, case.steps) for case in cases]


def by_judge(engine: Engine, max_tokens: int) -> Localiser:
    """One greedy question a solution, as a build asks it."""

    def request(name: str, text: str) -> Request:
        return Request(
            key=name,
            messages=({"role": "user", "content": text},),
            role="judge",
            temperature=0.0,
            max_tokens=max_tokens,
            seed=0,
        )

    def one(case: Case) -> Asking[Verdict]:
        assert case.solution is not None
        return judge(
            case.question, case.solution, case.steps, lambda text: request(case.name, text)
        )

    return lambda cases: ask(engine, together([one(case) for case in cases]))


def share(count: int, of: int) -> str:
    """47 % (39 to 55): a share of `of` and its 95 % interval."""
    low, high = wilson(count / of, of)
    return f"{100 * count / of:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def report(name: str, cases: Sequence[Case], localise: Localiser) -> None:
    """A line on wrong answers and one on right ones; what was undecided by its reason."""
    wrong = [case for case in cases if not case.answer_is_right]
    right = [case for case in cases if case.answer_is_right]
    found = list(zip(wrong, localise(wrong), strict=True))
    decided = [(case.truth, verdict.step) for case, verdict in found if verdict.step is not None]
    exact = sum(truth == step for truth, step in decided)
    known = [(truth, step) for truth, step in decided if truth is not None]
    near = sum(abs(truth - step) <= 1 for truth, step in known)
    late = sum(step > truth for truth, step in known)
    print(
        f"{name}: of {len(wrong)} wrong answers {len(decided)} decided, the labelled step "
        f"{share(exact, len(wrong))}, within one step {share(near, len(wrong))}; {late} too late"
    )
    if right:
        verdicts = list(zip(right, localise(right), strict=True))
        clean = [verdict for case, verdict in verdicts if case.truth is None]
        faulty = [verdict for case, verdict in verdicts if case.truth is not None]
        print(
            f"  as a filter: of {len(clean)} right answers by right steps {left_out(clean)} left "
            f"out, of {len(faulty)} by a wrong step {left_out(faulty)}"
        )
    for reason, count in Counter(v.failure for _, v in found if v.failure).most_common():
        print(f"  {count} answers of the judge: {reason}")


def left_out(verdicts: Sequence[Verdict]) -> int:
    """How many solutions a build's filter would leave out."""
    return sum(bool(verdict.step is not None or verdict.failure) for verdict in verdicts)


def always(cases: Sequence[Case]) -> None:
    """The best constant verdict, for comparison."""
    wrong = [case for case in cases if not case.answer_is_right]
    (place, count), *_ = Counter(case.truth for case in wrong).most_common()
    print(f"always step {place}: {share(count, len(wrong))} (counted from 0)")


def open_judge(judge: str | None, server: str | None) -> Engine:
    if server is not None:
        from prefkit.pairs.engines.server.engine import ServerEngine

        return ServerEngine(server, judge)
    from prefkit.pairs.engines.local.engine import LocalEngine

    return LocalEngine(judge, batch_size=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("--solutions", nargs="*", default=[], help="files of questions")
    parser.add_argument("--answer_field", default="answer")
    parser.add_argument("--solution_field", default="solution")
    parser.add_argument("--judge", help="a judge's folder, or its name on --judge_server")
    parser.add_argument("--judge_server")
    parser.add_argument("--judge_max_tokens", type=int, default=4096)
    parser.add_argument("--wrong_only", action="store_true", help="do not try it as a filter")
    parser.add_argument("--limit", type=int, help="only the first so many solutions")
    options = parser.parse_args()
    solutions = right_solutions(options.solutions, options.answer_field, options.solution_field)
    everything = read(options.labels, solutions)
    if options.wrong_only:
        everything = [case for case in everything if not case.answer_is_right]
    cases = [case for case in everything if case.solution is not None][: options.limit]
    print(f"{len(everything)} solutions, {len(cases)} with a right one to compare")
    always(everything)
    if options.judge or options.judge_server:
        with closing(open_judge(options.judge, options.judge_server)) as engine:
            report("judge", cases, by_judge(engine, options.judge_max_tokens))
        return
    if cases:
        report("program, with a right solution", cases, by_program)
    report("program, without one", everything, without_solution)


if __name__ == "__main__":
    main()
