"""What does prefkit's head save in TRL's own trainer, beside TRL alone and `PreferenceTrainer`?

    python -m benchmarks.trl_step [--shape steps answers long] [--model FOLDER] [--rounds 5]

`benchmarks.whole_step` with TRL's trainer as the measure: one pair a step, fp32, AdamW, the
reference a frozen copy; the ways take turns, each in a process of its own. "trl with prefkit" reads
a pair as one row, its common prefix once; with "padded" the models read TRL's rows, so that the
difference to TRL is the head alone. TRL checkpoints activations unless told otherwise:
`--checkpointing` measures that, where the head is more of the step. Weights, gradients, AdamW's
moments and the reference are in every way's memory: "beyond" is × TRL without them.
"""

import argparse
import json
import os
from dataclasses import replace

from benchmarks.whole_step.shapes import SHAPES as OF_STEPS
from benchmarks.whole_step.shapes import Shape
from benchmarks.whole_step.turns import Result, measure

LONG = Shape(prefix=64, chosen=1200, rejected=1100, words="answers that reason at length")
SHAPES = {**OF_STEPS, "long": LONG}
WAYS = ("trl", "trl with prefkit", "trl with prefkit, padded", "prefkit")


def table(shape: Shape, results: dict[str, Result]) -> str:
    """Markdown: each way's step beside TRL's own."""
    theirs = results["trl"]
    how = "; activations checkpointed" if shape.checkpointing else ""
    beyond = f"beyond {theirs.kept / 1e6:.0f} MB"
    lines = [
        f"### {shape.words}: {shape.prefix} + {shape.chosen} | {shape.rejected} tokens{how}",
        "",
        f"| way | s a step (least–most) | × TRL | MB above idle | × TRL | {beyond} | tokens read |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way, got in results.items():
        spread = f"{got.median:.2f} ({min(got.seconds):.2f}–{max(got.seconds):.2f})"
        ratios = f"{got.median / theirs.median:.2f}", f"{got.memory / theirs.memory:.2f}"
        rest = f"{(got.memory - got.kept) / (theirs.memory - theirs.kept):.2f}"
        megabytes = f"{got.memory / 1e6:.0f}"
        cells = (way, spread, ratios[0], megabytes, ratios[1], rest, f"{got.read}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--model", default=os.environ.get("PREFKIT_SMOLLM2"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true", help="as TRL does by default")
    parser.add_argument("--json", action="store_true", help="the results as one line more")
    options = parser.parse_args()
    from benchmarks import machine

    print(", ".join(f"{name} {value}" for name, value in machine.facts("cpu").items()))
    weights = "SmolLM2-135M" if options.model else "SmolLM2-135M's shape, random weights"
    print(f"{weights}, fp32, one pair a step, {options.rounds} rounds after one of warm-up\n")
    for name in options.shape:
        shape = replace(SHAPES[name], checkpointing=options.checkpointing)
        ways = dict.fromkeys(("trl", *options.way))
        results = measure(shape, list(ways), options.model, options.rounds)
        print(table(shape, results) + "\n", flush=True)
        if options.json:
            print(json.dumps({way: [got.seconds, got.memory] for way, got in results.items()}))


if __name__ == "__main__":
    main()
