"""Whole optimiser steps of trees, pairs one by one, and TRL's trainer, in turn.

SmolLM2-135M's shape, bf16 mixed precision, AdamW, the reference a frozen copy in every step. See
`benchmarks.trees`.
"""

from dataclasses import replace
from statistics import median

from benchmarks.gpu.telling import device, row
from benchmarks.trees.__main__ import Way, measure
from benchmarks.trees.rows import SHAPES, Shape

WAYS = ("tree", "shared", "trl")
ROUNDS = 5
BUDGETS = {"steps": SHAPES["steps"].budget, "one": 6800}  # tokens a row


def show(shape: Shape, found: dict[str, Way], on_gpu: bool) -> None:
    """A line for each way."""
    ours = median(found["tree"].seconds)
    for way, one in found.items():
        seconds = median(one.seconds)
        row(
            shape.words,
            way=way,
            **{
                "s a pair": round(seconds, 4),
                "least – most": f"{min(one.seconds):.4f} – {max(one.seconds):.4f}",
                "× tree": round(seconds / ours, 2),
                "tokens a pair": round(median(one.tokens)),
                "pairs a step": round(median(one.pairs)),
                "peak GB": round(one.memory / 1e9, 2) if on_gpu else None,
            },
        )


def main() -> None:
    where = device()
    on_gpu = where != "cpu"
    for name, budget in BUDGETS.items():
        shape = replace(SHAPES[name], budget=budget)
        if not on_gpu:
            shape = replace(
                shape,
                budget=80,
                prompt=8,
                length=6,
                steps=shape.steps and 3,
                samples=shape.samples and 2,
            )
        more = ("--device", where, "--body", "smollm2" if on_gpu else "minute")
        show(shape, measure(shape, WAYS, None, ROUNDS if on_gpu else 1, more), on_gpu)


if __name__ == "__main__":
    main()
