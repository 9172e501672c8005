"""`python -m benchmarks.localisers`: who finds the first wrong step of the tiny model's solutions.

Wrong solutions are sampled from the demo's model; its world knows the truth. Counted are verdicts
on the very step, and within one step of it; a solution left undecided counts as missed.
"""

import argparse
import time
from collections.abc import Callable, Sequence

from prefkit.demo import arithmetic as world
from prefkit.demo.run import MODEL
from prefkit.pairs.asking import Asking, together
from prefkit.pairs.engines.base import Completion, Request, seed_of
from prefkit.pairs.engines.local.engine import LocalEngine
from prefkit.pairs.grading.grader import Grader
from prefkit.pairs.localise.program.locate import locate
from prefkit.pairs.localise.rollouts import first_hopeless
from prefkit.pairs.steps import split_steps

Case = tuple[world.Problem, list[str], int]  # problem, steps of a wrong solution, first wrong step


def ask(engine: LocalEngine, asking: Asking[list]) -> list:
    """Runs generators of requests on an engine."""
    sent: list[Completion] | None = None
    while True:
        try:
            requests = next(asking) if sent is None else asking.send(sent)
        except StopIteration as stop:
            return list(stop.value)
        found = {c.key: c for b in engine.batches(requests) for c in engine.sample(b)}
        sent = [found[request.key] for request in requests]


def request(key: str, text: str) -> Request:
    return Request(key=key, text=text, temperature=1.0, max_tokens=56, seed=seed_of(0, key))


def wrong_solutions(engine: LocalEngine, count: int, seed: int) -> list[Case]:
    """One wrong solution each of the first problems that have one among two samples."""
    problems = world.problems(3 * count, "train", seed)
    requests = [request(f"{i}/{n}", p.prompt) for i, p in enumerate(problems) for n in range(2)]
    found = {c.key: c.text for b in engine.batches(requests) for c in engine.sample(b)}
    cases: list[Case] = []
    for place, problem in enumerate(problems):
        for text in (found[f"{place}/0"], found[f"{place}/1"]):
            verdict = world.check(problem, text)
            if not verdict.answer_right and verdict.first_wrong is not None:
                cases.append((problem, split_steps(text, "lines"), verdict.first_wrong))
                break
    return cases[:count]


def by_rollouts(engine: LocalEngine, cases: Sequence[Case], count: int) -> list[int | None]:
    """Verdicts by `count` continuations of every prefix."""
    with Grader(workers=1) as grader:

        def find(place: int) -> Asking:
            problem, steps, _ = cases[place]

            def succeed(texts: list[str]) -> list[bool]:
                gold = str(problem.answer)
                return [g.correct for g in grader.grade_many([(text, gold) for text in texts])]

            def continuation(prefix: list[str], number: int) -> Request:
                key = f"{place}/{len(prefix)}/{number}"
                return request(key, problem.prompt + "".join(prefix))

            return first_hopeless(steps, continuation, succeed, count)

        verdicts = ask(engine, together([find(place) for place in range(len(cases))]))
    return [verdict.step for verdict in verdicts]


def line(name: str, cases: Sequence[Case], find: Callable[[], list[int | None]]) -> str:
    start = time.perf_counter()
    steps = find()
    seconds = time.perf_counter() - start
    pairs = [(step, truth) for step, (_, _, truth) in zip(steps, cases, strict=True)]
    decided = [(step, truth) for step, truth in pairs if step is not None]
    exact = sum(step == truth for step, truth in decided)
    near = sum(abs(step - truth) <= 1 for step, truth in decided)
    total = len(cases)
    return (
        f"| {name} | {len(decided)} | {exact / total:.0%} | {near / total:.0%} | "
        f"{near / max(1, len(decided)):.0%} | {seconds:.0f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--solutions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the problems")
    parser.add_argument("--continuations", type=int, nargs="+", default=[8, 16, 24])
    options = parser.parse_args()
    engine = LocalEngine(str(MODEL), batch_size=256)
    cases = wrong_solutions(engine, options.solutions, options.seed)
    print(f"{len(cases)} wrong solutions, problems of seed {options.seed}\n")
    print("| by | decided | the very step | within one step | of the decided | time |")
    print("| --- | --- | --- | --- | --- | --- |")
    program = lambda: [locate(p.prompt, steps).step for p, steps, _ in cases]  # noqa: E731
    print(line("program", cases, program), flush=True)
    for count in options.continuations:
        found = line(
            f"{count} rollouts",
            cases,
            lambda n=count: by_rollouts(engine, cases, n),  # type: ignore
        )
        print(found, flush=True)


if __name__ == "__main__":
    main()
