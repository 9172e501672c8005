"""Does a tree of 200 branches take more memory than a plain row of as many tokens?

    python -m benchmarks.trees.wide [--tokens 32768] [--branches 200] [--write FILE]

One forward and backward of a whole model, fp32, activation checkpointing, DPO, every response token
scored; each in a process of its own. The tree is a solution of 200 steps with a wrong step beside
each; the plain row is one long response beside a short one. Memory is the peak that the step adds
to the process's resident size.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import write_page
from benchmarks.memory import ALLOCATOR
from benchmarks.windowed_rows import SHAPE, measure_step
from prefkit.data import PairCollator
from prefkit.data.pair import TokenizedPair, TokenizedSide, common_prefix

ROWS = ("plain", "tree")


def step_tree(tokens: int, branches: int) -> list[TokenizedPair]:
    """A solution of so many steps, and a wrong step beside each: about `tokens` in all."""
    draw, length = np.random.default_rng(0), tokens // (2 * branches)
    front, pairs = draw.integers(3, 4000, tokens - 2 * branches * length + 8), []
    for step in range(branches):
        right, wrong = (draw.integers(3, 4000, length) for _ in range(2))
        pairs.append(_pair(front, right, wrong, step))
        front = np.concatenate([front, right])
    return pairs


def plain_row(tokens: int, branches: int) -> list[TokenizedPair]:
    """One response of nearly all tokens, and one of as many as a branch has."""
    draw, short = np.random.default_rng(0), tokens // (2 * branches)
    sizes = (8, tokens - 8 - short, short)
    return [_pair(*(draw.integers(3, 4000, size) for size in sizes), 0)]  # type: ignore[misc]


def _pair(front: np.ndarray, right: np.ndarray, wrong: np.ndarray, row: int) -> TokenizedPair:
    def side(ids: np.ndarray) -> TokenizedSide:
        whole = np.concatenate([front, ids]).astype(np.int32)
        scored = np.arange(len(whole)) >= len(front)
        return TokenizedSide(ids=whole, scored=scored, weights=scored.astype(np.float32), eos=False)

    chosen, rejected = side(right), side(wrong)
    shared = common_prefix(chosen.ids, rejected.ids)
    return TokenizedPair(
        chosen=chosen, rejected=rejected, shared=shared, source="benchmark", row=row, question=0
    )


def measure(row: str, tokens: int, branches: int) -> dict[str, float]:
    """Bytes that a step adds at its peak, and its seconds."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    made = {"plain": plain_row, "tree": step_tree}[row]
    collate = PairCollator(0, layout="tree")
    batch = collate(made(tokens, branches))
    found = measure_step(model, tokens, collate(made(512, 4)), batch)
    return {**found, "tokens": batch["input_ids"].numel()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--branches", type=int, default=200)
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is not None:
        print(json.dumps(measure(options.row, options.tokens, options.branches)))
        return
    found = {}
    for row in ROWS:
        command = [sys.executable, "-m", "benchmarks.trees.wide", "--row", row, "--tokens"]
        command += [str(options.tokens), "--branches", str(options.branches)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ALLOCATOR}, check=True
        )
        found[row] = json.loads(done.stdout.splitlines()[-1])
    lines = ["| row | tokens | MB added | × plain | seconds | × plain |", "| --- " * 6 + "|"]
    for row, one in found.items():
        ratios = [one[name] / found["plain"][name] for name in ("memory", "seconds")]
        lines.append(
            f"| {row} | {one['tokens']:,} | {one['memory'] / 1e6:,.0f} | {ratios[0]:.2f} | "
            f"{one['seconds']:.1f} | {ratios[1]:.2f} |"
        )
    print("\n".join(lines))
    if options.write is not None:
        command = f"python -m benchmarks.trees.wide --tokens {options.tokens}"
        write_page(options.write, command, "\n".join(lines))


if __name__ == "__main__":
    main()
