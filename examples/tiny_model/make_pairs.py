"""Makes the step pairs of `prefkit demo` from the tiny model's own samples.

Eight solutions a problem at temperature 1. Where at least one is right and one is wrong, the first
wrong line of a wrong one is rejected, the line a right one has in its place is chosen, and the
right lines before both are the prefix. One pair a problem, training problems only.

    OMP_NUM_THREADS=1 python examples/tiny_model/make_pairs.py

The rows have the fields of Math-Step-DPO-10K: the prefix is `initial_reason_steps`, and beside the
two steps stand the two continuations to the end of the solution (`full_chosen`, `full_rejected`),
so that the same rows serve Step-DPO and DPO on whole solutions.
"""

import argparse
import itertools
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from prefkit.demo import arithmetic as world
from prefkit.demo.evaluate import Transcript, evaluate
from prefkit.demo.lines import split_lines

ASSETS = Path(world.__file__).parent / "assets"
STEP = re.compile(r"\d\d[+-]\d=\d\d\n")
PROBLEMS_AT_A_TIME, SAMPLES = 128, 8


def make_pair(transcripts: list[Transcript], rng: random.Random) -> dict[str, str] | str:
    """A row from the samples of one problem, or why there is none."""
    right = [t for t in transcripts if t.verdict.all_steps_right and t.ended]
    wrong = [t for t in transcripts if t.verdict.first_wrong is not None]
    if not right:
        return "no right sample"
    if not wrong:
        return "no wrong sample"
    sample = rng.choice(wrong)
    first = sample.verdict.first_wrong
    good, bad = split_lines(right[0].text), split_lines(sample.text)
    if not (first < len(good) and first < len(bad) and STEP.fullmatch(bad[first])):
        return "wrong line is not a step"
    return {
        "prompt": sample.problem.prompt,
        "initial_reason_steps": "".join(good[:first]),
        "chosen": good[first],
        "rejected": bad[first],
        "full_chosen": "".join(good[first:]),
        "full_rejected": "".join(bad[first:]),
        "answer": str(sample.problem.answer),
    }


def make_pairs(model_folder: Path, seed: int, tally: Counter[str]) -> Iterator[dict[str, str]]:
    """An endless stream of rows; `tally` counts what became of the problems."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rng, source = random.Random(seed), world.stream("train", seed)
    for batch in itertools.count():
        asked = list(itertools.islice(source, PROBLEMS_AT_A_TIME))
        solved = evaluate(model, tokenizer, asked, temperature=1.0, samples=SAMPLES, seed=batch)
        for at in range(0, len(solved.transcripts), SAMPLES):
            row = make_pair(list(solved.transcripts[at : at + SAMPLES]), rng)
            if isinstance(row, str):
                tally[row] += 1
            else:
                tally["pair"] += 1
                yield row


def write(rows: list[dict[str, str]], path: Path) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(draft, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ASSETS / "model")
    parser.add_argument("--output", type=Path, default=ASSETS / "pairs.jsonl")
    parser.add_argument("--pairs", type=int, default=640)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    tally: Counter[str] = Counter()
    rows = list(itertools.islice(make_pairs(options.model, options.seed, tally), options.pairs))
    write(rows, options.output)
    print(f"{options.output}: {len(rows)} pairs; problems: {dict(tally)}")
    print(
        "first wrong line:",
        dict(sorted(Counter(row["initial_reason_steps"].count("\n") for row in rows).items())),
    )


if __name__ == "__main__":
    main()
