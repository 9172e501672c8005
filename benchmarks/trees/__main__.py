"""`python -m benchmarks.trees`: seconds a pair, tokens a pair and memory, the ways taking turns.

A round is one optimiser step of each way, or as many as read all pairs of some questions: of a tree
some pairs share more than others.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks import machine
from benchmarks.trees import __doc__ as usage
from benchmarks.trees.child import WAYS
from benchmarks.trees.rows import SHAPES, Shape, curve, pairs_a_round
from benchmarks.whole_step.turns import Contestant


@dataclass
class Way:
    """What a way's rounds took.

    Attributes:
        seconds, cpu, tokens: a pair, of each round: seconds, seconds of all processors (which other
            work on the machine hardly changes), tokens that the policy read.
        pairs: a step, of each round.
        memory: bytes above idle at the peak.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    pairs: list[float] = field(default_factory=list)
    memory: int = 0


def measure(
    shape: Shape, ways: Sequence[str], model: str | None, rounds: int, more: Sequence[str] = ()
) -> dict[str, Way]:
    """All ways, taking turns; the first round is warm-up.

    Raises:
        RuntimeError: a way failed; with its last lines.
    """
    running: dict[str, Contestant] = {}
    found = {way: Way() for way in ways}
    pairs = pairs_a_round(shape)
    try:
        for way in ways:
            running[way] = Contestant(
                way,
                shape,
                model,
                (rounds + 1) * pairs,
                module="benchmarks.trees.child",
                more=more,
                allocator={},
            )
        for turn in range(rounds + 1):
            order = list(running)
            for way in order[turn % len(order) :] + order[: turn % len(order)]:
                _round(running[way], found[way], pairs, warm_up=not turn)
    finally:
        for one in running.values():
            one.process.kill()
    return found


def _round(running: Contestant, way: Way, pairs: int, warm_up: bool) -> None:
    """Steps until so many pairs were read."""
    steps = [running.step()]
    while sum(step["pairs"] for step in steps) < pairs:
        steps.append(running.step())
    way.memory = steps[-1]["memory"]
    if not warm_up:
        total = {name: sum(step[name] for step in steps) for name in steps[0]}
        way.seconds.append(total["seconds"] / total["pairs"])
        way.cpu.append(total["cpu"] / total["pairs"])
        way.tokens.append(total["read"] / total["pairs"])
        way.pairs.append(total["pairs"] / len(steps))


def lines(shape: Shape, found: dict[str, Way]) -> list[str]:
    """A Markdown table; ratios are medians beside those of the first way."""
    first = next(iter(found.values()))
    told = [
        f"### {shape.words}",
        "",
        "| way | s a pair (least–most) | × tree | CPU s a pair | × tree | tokens a pair | × tree | "
        "pairs a step | MB above idle | × tree |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way, one in found.items():
        seconds, tokens = statistics.median(one.seconds), statistics.median(one.tokens)
        cpu = statistics.median(one.cpu)
        cells = (
            way,
            f"{seconds:.3f} ({min(one.seconds):.3f}–{max(one.seconds):.3f})",
            f"{seconds / statistics.median(first.seconds):.2f}",
            f"{cpu:.3f}",
            f"{cpu / statistics.median(first.cpu):.2f}",
            f"{tokens:.0f}",
            f"{tokens / statistics.median(first.tokens):.2f}",
            f"{statistics.median(one.pairs):.3g}",
            f"{one.memory / 1e6:.0f}",
            f"{one.memory / first.memory:.2f}",
        )
        told.append("| " + " | ".join(cells) + " |")
    return [*told, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=usage.split("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--model", default=os.environ.get("PREFKIT_SMOLLM2"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, help="tokens a row, instead of the shape's own")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--curve", action="store_true", help="step trees, tree and shared alone")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine.facts(options.device).items()))
    weights = "SmolLM2-135M" if options.model else "SmolLM2-135M's shape, random weights"
    print(f"{weights}, fp32, AdamW, {options.rounds} rounds after one of warm-up\n")
    shapes = curve() if options.curve else {name: SHAPES[name] for name in options.shape}
    ways = ("tree", "shared") if options.curve else options.way
    more = ("--device", options.device)
    for shape in shapes.values():
        if options.budget:
            shape = replace(shape, budget=options.budget)
        found = measure(shape, ways, options.model, options.rounds, more)
        print("\n".join(lines(shape, found)), flush=True)


if __name__ == "__main__":
    main()
