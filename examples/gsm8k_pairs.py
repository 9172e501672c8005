"""Preference pairs of three kinds from model solutions to GSM8K.

    python examples/gsm8k_pairs.py example_model_solutions.jsonl --out data/gsm8k

The input is the file `example_model_solutions.jsonl` of github.com/openai/grade-school-math
(MIT): for each question several solutions by models, one step a line, marked right or wrong.
Written are

    naive.jsonl   a right and a wrong solution, whole               (dpo, tdpo1, tdpo2, scdpo)
    step.jsonl    correct steps, then one right and one wrong step  (step-dpo)
    sc.jsonl      correct steps, then both continuations to the end (scdpo, with naive.jsonl)
    spans.jsonl   naive pairs with weights on the wrong side        (cdpo)

and the same with `_eval` for a tenth of the questions. A step is taken as correct while its
computed value (`<<16-7=9>>9`) also occurs in the right solution: the first wrong step is found by
rule, not by a judge. The weights of spans.jsonl are a stand-in by the same rule (1 on the first
wrong step, 0.3 elsewhere): those of the paper come from contrasting two models.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_RESULT = re.compile(r"=\s*([-\d.,/]+)\s*>>")
Row = dict[str, Any]


def results(line: str) -> list[str]:
    """The computed values of a step, as written by the calculator marks."""
    return [value.replace(",", "") for value in _RESULT.findall(line)]


def clean(line: str) -> str:
    """A step without its calculator marks."""
    return re.sub(r"<<[^>]*>>", "", line).strip()


def first_wrong(right: list[str], wrong: list[str]) -> int | None:
    """The first step of `wrong` with a value that `right` never computes, or None."""
    known = {value for line in right for value in results(line)}
    for place, line in enumerate(wrong):
        if any(value not in known for value in results(line)):
            return place
    return None


def next_right(right: list[str], done: list[str]) -> int | None:
    """The first step of `right` with a value that the steps done so far do not have."""
    known = {value for line in done for value in results(line)}
    for place, line in enumerate(right):
        if any(value not in known for value in results(line)):
            return place
    return None


def pairs_of(question: str, right: list[str], wrong: list[str]) -> Iterator[tuple[str, Row]]:
    """(kind, row) of one question; steps are lines with their calculator marks."""
    right_text, wrong_text = ["\n".join(clean(x) for x in steps) for steps in (right, wrong)]
    yield "naive", {"prompt": question, "chosen": right_text, "rejected": wrong_text}
    k = first_wrong(right, wrong)
    if k is None:
        return
    before = sum(len(clean(x)) + 1 for x in wrong[:k])
    span = [before, before + len(clean(wrong[k]))]
    rest = [[start, end, 0.3] for start, end in ((0, span[0]), (span[1], len(wrong_text)))]
    spans = [part for part in (rest[0], [*span, 1.0], rest[1]) if part[0] < part[1]]
    yield (
        "spans",
        {
            "prompt": question,
            "chosen": right_text,
            "rejected": wrong_text,
            "rejected_spans": spans,
        },
    )
    j = next_right(right, wrong[:k])
    if j is None:
        return
    prefix = "".join(clean(x) + "\n" for x in wrong[:k])
    step = {"prompt": question, "prefix": prefix}
    ends = [clean(right[j]), clean(wrong[k])]
    yield "step", {**step, "chosen": ends[0], "rejected": ends[1], "append_eos": False}
    ends = ["\n".join(clean(x) for x in part) for part in (right[j:], wrong[k:])]
    yield "sc", {**step, "chosen": ends[0], "rejected": ends[1], "append_eos": True}


def read(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(question, steps of a right solution, steps of a wrong one) where there are both."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        solutions = [value for value in row.values() if isinstance(value, dict)]
        right = [s["solution"] for s in solutions if s["is_correct"]]
        wrong = [s["solution"] for s in solutions if not s["is_correct"]]
        if right and wrong and clean(right[0]) != clean(wrong[0]):
            yield row["question"], *([s for s in x.split("\n") if s] for x in (right[0], wrong[0]))


def main() -> None:
    """Writes all files and prints how many pairs each holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("solutions", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data/gsm8k"))
    arguments = parser.parse_args()
    if not arguments.solutions.is_file():
        sys.exit(f"gsm8k_pairs.py: there is no file {arguments.solutions}.")
    files: dict[str, list[Row]] = {}
    for place, (question, right, wrong) in enumerate(read(arguments.solutions)):
        part = "_eval" if place % 10 == 9 else ""
        for kind, row in pairs_of(question, right, wrong):
            if row["chosen"] == row["rejected"]:
                continue  # they differed in a calculator mark only
            files.setdefault(kind + part, []).append(row)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, rows in sorted(files.items()):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (arguments.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{arguments.out / name}.jsonl: {len(rows)} pairs")


if __name__ == "__main__":
    main()
