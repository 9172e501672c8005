"""What a benchmark file asks: cases, the ways beside each other, and how to shrink them.

A group of cases is measured in one go, all its ways in turn round by round, so that ratios within
a group do not depend on how fast the machine happened to be.
"""

import importlib
from dataclasses import dataclass, replace

from benchmarks.problems import Case
from benchmarks.ways import WAYS

# In the order of usefulness: where time runs out, the last ones are missing.
FILES = (
    "bench_loss",
    "bench_frozen",
    "bench_masked",
    "bench_precision",
    "memory_vs_tokens",
    "bench_heads",
    "bench_pairs",
)

EVERY = tuple(name for name in WAYS if name not in ("one_pass", "plain_fp32"))
MAIN = ("prefkit", "eager", "trl", "liger", "gemms")
FUSED = (
    *("prefkit", "keep_dz", "two_pass", "eager", "trl", "liger", "cce", "torch_chunked"),
    *("gemms", "gemms_whole"),
)


@dataclass(frozen=True)
class Group:
    """Cases measured together, the names of the ways that do each of them, and whether memory is
    measured too."""

    cases: tuple[Case, ...]
    ways: tuple[str, ...]
    memory: bool = True


@dataclass(frozen=True)
class Question:
    """One benchmark file.

    Attributes:
        name: of the file.
        title: the question in words.
        cpu: what `make bench` runs; full: the same question with every way, for a CPU with time;
            gpu: what `make bench-gpu` runs; long: what `make bench-long` runs, nothing for most.
        rounds: steps timed of each way.
        error_tokens: tokens of the same case on which errors against fp64 are taken; 0 for none.
    """

    name: str
    title: str
    cpu: tuple[Group, ...]
    full: tuple[Group, ...]
    gpu: tuple[Group, ...]
    long: tuple[Group, ...] = ()
    rounds: int = 5
    error_tokens: int = 256

    def groups(self, size: str) -> tuple[Group, ...]:
        """The groups of a size; "tiny" are those of `cpu` at shapes that take no time."""
        if size != "tiny":
            sizes = {"cpu": self.cpu, "full": self.full, "gpu": self.gpu, "long": self.long}
            return sizes[size]
        return tuple(  # memory would be below what can be seen
            replace(group, cases=tuple(map(tiny, group.cases)), memory=False) for group in self.cpu
        )


def tiny(case: Case) -> Case:
    """The case at V 640, D 32 and 8 to 32 tokens a sequence, more where the original has more."""
    length = min(32, max(8, case.length // 16))
    return replace(case, tokens=2 * case.pairs * length, dim=32, vocab=640)


def load(name: str) -> Question:
    """The question of a benchmark file."""
    question = importlib.import_module(f"benchmarks.{name}").QUESTION
    assert isinstance(question, Question), f"benchmarks/{name}.py has no QUESTION"
    return question
