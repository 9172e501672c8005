"""How far does a row go? Memory and time of a whole optimiser step, from 1k to 32k tokens a row.

    python -m benchmarks.long_rows [--tokens 1024 … 32768] [--trl-up-to 4096]

The vocabulary of Llama-3 (128,256) on a body so small that the head and the activations are what
counts; a pair whose sides share half of the row; DPO with a frozen copy as reference, fp32,
activation checkpointing. `PreferenceTrainer` and TRL's `DPOTrainer` take two real optimiser steps
in a process of their own; the first is warm-up. Beside the peak above the idle process: one fp32
copy of the logits of that row, which a trainer that forms them holds several times.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.whole_step.shapes import BODIES, Shape
from benchmarks.whole_step.turns import Contestant

VOCAB = int(BODIES["tiny"]["vocab_size"])
TOKENS = (1024, 2048, 4096, 8192, 16_384, 32_768)


@dataclass(frozen=True)
class Point:
    """One way at one length: bytes above the idle process and seconds a step."""

    way: str
    tokens: int
    memory: int
    seconds: float


def shape_of(tokens: int) -> Shape:
    """A row [prefix, chosen, rejected] of so many tokens; the end-of-sequence tokens included."""
    side = tokens // 4
    return Shape(
        prefix=tokens - 2 * side,
        chosen=side - 1,
        rejected=side - 1,
        body="tiny",
        checkpointing=True,
    )


def measure(way: str, tokens: int) -> Point:
    """Two optimiser steps in a process of its own.

    Raises:
        RuntimeError: it failed, for example because the machine has too little memory.
    """
    one = Contestant(way, shape_of(tokens), None, 2)
    try:
        one.step()
        one.step()
    finally:
        one.process.kill()
    return Point(way, tokens, one.memory, one.seconds[-1])


def table(points: list[Point]) -> str:
    """Markdown: one line a length and way."""
    lines = [
        "| tokens a row | way | MB above idle | of one fp32 logits copy | s a step |",
        "| --- | --- | --- | --- | --- |",
    ]
    for point in sorted(points, key=lambda point: (point.tokens, point.way)):
        copy = point.tokens * VOCAB * 4
        share = f"{point.memory / copy:.2f} of {copy / 1e6:.0f} MB"
        cells = (f"{point.tokens:,}", point.way, f"{point.memory / 1e6:.0f}", share)
        lines.append("| " + " | ".join((*cells, f"{point.seconds:.1f}")) + " |")
    return "\n".join(lines)


def draw(points: list[Point], path: Path, caption: str) -> None:
    """The curve: memory against the tokens of a row, with the line of one logits copy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(point.way for point in points):
        mine = sorted((p.tokens, p.memory / 1e9) for p in points if p.way == way)
        axes.plot(*zip(*mine, strict=True), marker="o", label=way)
    lengths = sorted({point.tokens for point in points})
    axes.plot(
        lengths,
        [tokens * VOCAB * 4 / 1e9 for tokens in lengths],
        linestyle="--",
        color="grey",
        label="one fp32 copy of the row's logits",
    )
    axes.set(xscale="log", yscale="log", xlabel="tokens a row", ylabel="GB above the idle process")
    axes.set_xticks(lengths, [f"{tokens // 1024}k" for tokens in lengths])
    axes.legend()
    figure.text(0.01, -0.03, caption, fontsize=6)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--trl-up-to", type=int, default=4096, help="longest row that TRL gets")
    parser.add_argument("--picture", type=Path, help="PNG to draw the curve to")
    options = parser.parse_args()
    from benchmarks import machine

    facts = ", ".join(f"{name} {value}" for name, value in machine.facts("cpu").items())
    points = []
    for tokens in options.tokens:
        for way in ("prefkit", "trl") if tokens <= options.trl_up_to else ("prefkit",):
            points.append(measure(way, tokens))
            print(f"{way}, {tokens} tokens: {points[-1].memory / 1e6:.0f} MB", flush=True)
    print(f"\n{facts}\n\n{table(points)}")
    if options.picture:
        draw(points, options.picture, facts)


if __name__ == "__main__":
    main()
