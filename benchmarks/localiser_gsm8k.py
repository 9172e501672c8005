"""How good is the localiser by program? Its verdicts on real wrong solutions, to be read.

    python -m benchmarks.localiser_gsm8k model_solutions.jsonl --count 20 --seed 0

The file is `example_model_solutions.jsonl` of github.com/openai/grade-school-math (MIT): for each
question a right solution (`ground_truth`) and four of models, marked right or wrong. Printed are
wrong solutions in random order, the step called wrong marked by ">>", and how often each rule
spoke, over all wrong and all right solutions (there every verdict is a false alarm or a right
answer by a wrong way).
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prefkit.pairs.localise.program.locate import locate
from prefkit.pairs.localise.verdict import Verdict
from prefkit.pairs.steps import split_steps


class Solution(NamedTuple):
    name: str
    question: str
    truth: str
    text: str
    right: bool


def read(path: Path) -> Iterator[Solution]:
    """The models' solutions, in the order of the file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        for model, found in row.items():
            if isinstance(found, dict):
                yield Solution(
                    f"question {number}, {model}",
                    row["question"],
                    row["ground_truth"],
                    found["solution"],
                    found["is_correct"],
                )


def verdict_on(solution: Solution) -> Verdict:
    steps = split_steps(solution.text, "lines")
    return locate(solution.question, steps, solution=solution.truth)


def rule_of(verdict: Verdict) -> str:
    """The rule that spoke, without what it spoke of."""
    for words in ("false arithmetic", "from nowhere", "not on the way", "(a guess)", "(certain)"):
        if words in verdict.reason:
            return words
    return verdict.reason


def show(solution: Solution) -> str:
    verdict = verdict_on(solution)
    steps = split_steps(solution.text, "lines")
    lines = [
        f"{'>>' if place == verdict.step else '  '} {place} {step.rstrip()}"
        for place, step in enumerate(steps)
    ]
    truth = "\n".join(f"     {line}" for line in solution.truth.splitlines())
    return "\n".join(
        [f"=== {solution.name}", f"Q    {solution.question}", truth, *lines, f"-> {verdict.reason}"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("solutions", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rule", default="", help="only verdicts whose rule holds these words")
    options = parser.parse_args()
    everything = list(read(options.solutions))
    wrong = [solution for solution in everything if not solution.right]
    shown = random.Random(options.seed).sample(wrong, len(wrong))
    if options.rule:
        shown = [x for x in shown if options.rule in rule_of(verdict_on(x))]
    print("\n\n".join(show(solution) for solution in shown[: options.count]))
    for title, part in (("wrong", wrong), ("right", [x for x in everything if x.right])):
        counts = Counter(rule_of(verdict_on(x)) for x in part)
        print(f"\n{len(part)} {title} solutions")
        for rule, count in counts.most_common():
            print(f"  {count:5d}  {count / len(part):6.1%}  {rule}")


if __name__ == "__main__":
    main()
