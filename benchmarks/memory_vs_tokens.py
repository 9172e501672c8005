"""Does any buffer grow with tokens × vocabulary? Memory and time of one loss, against the tokens.

    python -m benchmarks.memory_vs_tokens [--tokens 1024 2048 4096] [--objective tdpo2]
    python -m benchmarks.run --only memory_vs_tokens          (every way, and the picture)

Called itself: for each N a fresh process runs forward + backward of `fused_preference_loss` and
reports the most memory it held above its inputs. The slope between two N is what one more token
costs. Beside it: the bytes of a token's hidden state, its gradient and fp32 copies of both, which a
fused loss may cost, and of one row of fp32 logits, which it may not.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.memory import ALLOCATOR, resident_peak
from benchmarks.problems import LOSSES, Case, Problem, build
from benchmarks.questions import EVERY, FUSED, MAIN, Group, Question
from benchmarks.ways.base import objective
from prefkit import fused_preference_loss
from prefkit.loss.passes import PASSES

VOCAB, DIM = 128_256, 256
_SMALL: dict[str, Any] = {"dim": 256, "vocab": 32_000}
_LLAMA_8B: dict[str, Any] = {
    "dim": 4096,
    "vocab": 128_256,
    "dtype": "bfloat16",
    "head": "Llama-3-8B",
}


def _growing(loss: str, tokens: tuple[int, ...], **shape: Any) -> tuple[Case, ...]:
    return tuple(Case(loss=loss, tokens=count, **shape) for count in tokens)


QUESTION = Question(
    name="memory_vs_tokens",
    title="Memory and time against the number of tokens",
    cpu=(Group(_growing("dpo", (128, 256, 512), **_SMALL), MAIN),),
    full=tuple(Group(_growing(loss, (256, 512, 1024, 2048), **_SMALL), EVERY) for loss in LOSSES),
    gpu=tuple(
        Group(_growing(loss, (2048, 8192, 32_768, 65_536), **_LLAMA_8B), FUSED) for loss in LOSSES
    ),
    error_tokens=64,
)


def test_tokens(replay: Callable[[], None]) -> None:
    replay()


@dataclass(frozen=True)
class Point:
    """One measurement: tokens and bytes above the inputs."""

    tokens: int
    extra: int


def measure(
    tokens: int, loss: str, dtype: str, frozen: bool, budget_mib: int, passes: str = "auto"
) -> Point:
    """Run one point in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory_vs_tokens", "--child", str(tokens)]
    command += ["--objective", loss, "--dtype", dtype, "--budget-mib", str(budget_mib)]
    command += ["--passes", passes, *(["--frozen"] if frozen else [])]
    env = {**os.environ, **ALLOCATOR}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return Point(**json.loads(done.stdout.splitlines()[-1]))


def allowed_bytes_a_token(dtype: str) -> int:
    """hidden + its gradient, in their dtype, + fp32 copies of both."""
    return DIM * 2 * (getattr(torch, dtype).itemsize + 4)


def _child(case: Case, budget: int, passes: str) -> Point:
    """With the reference's log-probs cached for DPO, as hidden states for TDPO."""
    for warming in (case.cut(64), case):  # libraries are warmed outside the measurement
        problem = build(warming)
        extra = resident_peak(lambda problem=problem: _step(problem, budget, passes))  # type: ignore[misc]
    return Point(case.tokens, extra)


def _step(problem: Problem, budget: int, passes: str) -> None:
    reference: dict[str, Any] = {"ref_logp": problem.ref_logp}
    if problem.ref_logp is None:
        reference = {"ref_hidden": problem.ref_hidden, "ref_weight": problem.ref_weight}
    stream = (problem.hidden, problem.weight, problem.targets, problem.segments)
    loss = objective(problem.case)
    options = {"memory_budget": budget, "passes": passes, **reference}
    fused_preference_loss(*stream, loss, **options).loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--objective", choices=LOSSES, default="tdpo2")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--frozen", action="store_true", help="frozen head")
    parser.add_argument("--passes", choices=PASSES, default="auto")
    parser.add_argument("--budget-mib", type=int, default=64, help="for logits buffers")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    kind = options.objective, options.dtype, options.frozen
    if options.child:
        case = Case(
            loss=options.objective,
            tokens=options.child,
            dim=DIM,
            vocab=VOCAB,
            dtype=options.dtype,
            frozen=options.frozen,
            cached_ref=options.objective == "dpo",
        )
        point = _child(case, options.budget_mib << 20, options.passes)
        return print(json.dumps({"tokens": point.tokens, "extra": point.extra}))
    last_two = options.budget_mib, options.passes
    points = [measure(tokens, *kind, *last_two) for tokens in options.tokens]
    allowed = allowed_bytes_a_token(options.dtype)
    head = "frozen" if options.frozen else "trainable"
    print(f"{options.objective}, {options.dtype}, {head} head, V {VOCAB}, D {DIM}")
    print("  tokens  extra MB  bytes/token of allowed  N×V fp32 MB")
    for last, point in zip([None, *points], points, strict=False):
        slope = (point.extra - last.extra) / (point.tokens - last.tokens) if last else None
        cells = f"{slope:12.0f} {slope / allowed:10.2f}" if slope is not None else f"{'':>23}"
        full = point.tokens * VOCAB * 4 / 1e6
        print(f"{point.tokens:8d} {point.extra / 1e6:9.1f} {cells} {full:12.0f}")
    print(f"allowed: {allowed} bytes a token; one row of fp32 logits: {VOCAB * 4} bytes")


if __name__ == "__main__":
    main()
