"""The steps by value, each with its limit.

Limits are for an H100 (798 TFLOP/s in a large bf16 product, 3 TB/s), with 10 s to load torch and
1 to 2 s to compile a Triton kernel. The first five end within 325 s even where all of them meet
their limits; an H200 took 192 s for them and 444 s for nine steps (2026-11-27).
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

KERNEL_TESTS = ("rows", "rows_triton", "low_precision", "token_stats", "pair_scores")


@dataclass(frozen=True)
class Step:
    """One question and the process that answers it.

    Attributes:
        arguments: of python.
        limit: seconds after which the process group is killed.
        least: seconds that it is worth starting with; with less it is left out.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    limit: float
    least: float = 20.0

    @property
    def command(self) -> list[str]:
        return [sys.executable, *self.arguments]


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.gpu.{name}", *arguments)


STEPS = (
    # Two ceilings of 0.1 s each; loading torch is the rest.
    Step("environment", "The machine, and what it can do at most", _module("ceilings"), 40, 10),
    # About 40 kernel variants to compile; the checks themselves take milliseconds, two of them
    # with fp64 truth at V 128k, D 4096 and 4096 tokens 35 TFLOP of fp64 each (1 s).
    Step("smoke", "Every path against fp64", _module("smoke"), 80),
    # 2 losses × 4 or 5 ways × 7 steps × 0.2 to 0.5 s.
    Step(
        "head",
        "One loss at the head of Llama-3-70B, beside TRL",
        _module(
            "losses", "bench_loss", "--way", "prefkit", "two_pass", "trl", "gemms", "gemms_whole"
        ),
        60,
    ),
    # 2 shapes × 2 trainers × 5 steps of 0.5 to 1.2 s, and 20 s to start each pair of them.
    Step("trainers", "A whole optimiser step beside TRL's trainer", _module("trainers"), 100, 40),
    # 4 heads × 6 sizes × 6 products × 50 ms.
    Step("shapes", "Products of the head, by tokens of a chunk", _module("shapes"), 45),
    Step(
        "frozen_heads_pairs",
        "Frozen heads, other heads, several pairs",
        _module(
            *("losses", "bench_frozen", "bench_heads", "bench_pairs"),
            *("--way", "prefkit", "trl", "gemms"),
        ),
        100,
    ),
    # 9 ways over pairs and 6 over trees, 1 s each, and 6 checks; FlexAttention is
    # compiled five times for that, each time for 10 s as far as one can tell without a GPU.
    Step("attention", "Attention of pairs and of trees", _module("attention"), 90, 20),
    # 2 shapes × 3 trainers × 6 steps, below a second as far as one can tell without a GPU, and
    # 25 s to start each three.
    Step("trees", "One tree a question beside pairs and TRL", _module("trees"), 90, 40),
    # 470 tests, 107 variants to compile: an H200 with 16 processors took 62 s for 91 % of them.
    Step("tests", "The kernels' own tests, compiled", _module("kernel_tests", *KERNEL_TESTS), 90),
    Step(
        "choices", "Defaults beside their alternatives", _module("choices", "small", "budgets"), 60
    ),
    # 80 launches to compile, in 8 processes.
    Step(
        "tune",
        "Launches of the kernels over logits",
        ("-m", "benchmarks.tune_rows", "--vocab", "128256", "--compile-in", "8"),
        75,
    ),
    # One at a time, so that one that does not end takes no other's result.
    Step(
        "peers",
        "Other projects' heads, each beside prefkit",
        _module(
            *("losses", "bench_loss", "--apart", "--losses", "dpo"),
            *("--way", "liger", "cce", "cce_exact", "quack", "compiled"),
        ),
        120,
    ),
)


def from_file(path: Path) -> tuple[Step, ...]:
    """Steps of a JSON list of objects with the fields of `Step`: what the tests run."""
    fields = json.loads(path.read_text("utf-8"))
    return tuple(Step(**{**one, "arguments": tuple(one["arguments"])}) for one in fields)
