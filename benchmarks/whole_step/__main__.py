"""The command line of `benchmarks.whole_step`."""

import argparse
import json
import os

from benchmarks.whole_step import __doc__ as usage
from benchmarks.whole_step.child import WAYS, child
from benchmarks.whole_step.shapes import SHAPES, Shape
from benchmarks.whole_step.turns import Result, measure


def table(shape: Shape, results: dict[str, Result]) -> str:
    """Markdown: each way's step beside the first's."""
    first = next(iter(results.values()))
    lines = [
        f"### {shape.words}: {shape.prefix} + {shape.chosen} | {shape.rejected} tokens",
        "",
        "| way | s a step (least–most) | × prefkit | tokens/s | MB above idle | × prefkit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, got in results.items():
        spread = f"{got.median:.2f} ({min(got.seconds):.2f}–{max(got.seconds):.2f})"
        ratios = f"{got.median / first.median:.2f}", f"{got.memory / first.memory:.2f}"
        rate = f"{got.tokens / got.median:.0f}"
        cells = (way, spread, ratios[0], rate, f"{got.memory / 1e6:.0f}", ratios[1])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(usage or "").split("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS[:3]))
    parser.add_argument("--model", default=os.environ.get("PREFKIT_SMOLLM2"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--child-shape", help=argparse.SUPPRESS)
    parser.add_argument("--child-profile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        shape = Shape(**json.loads(options.child_shape))
        model = options.model or None
        return child(options.child, shape, model, options.rounds, options.child_profile)
    from benchmarks import machine

    print(", ".join(f"{name} {value}" for name, value in machine.facts("cpu").items()))
    weights = "SmolLM2-135M" if options.model else "SmolLM2-135M's shape, random weights"
    print(f"{weights}, fp32, one pair a step, {options.rounds} rounds after one of warm-up\n")
    for shape in (SHAPES[name] for name in options.shape):
        print(table(shape, measure(shape, options.way, options.model, options.rounds)) + "\n")


if __name__ == "__main__":
    main()
