"""Measures a group of cases: errors, memory, and times taken in turns.

The machine's speed drifts by more than the differences of interest, so a round runs every way of
every case once, and the next round begins one way later. A way that cannot do a case, runs out of
memory or fails is kept with its reason; the others go on.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

from benchmarks import memory
from benchmarks.problems import Case, build
from benchmarks.questions import Group, Question
from benchmarks.truth import Found, errors, truth
from benchmarks.ways import WAYS, Outcome, Unavailable, Way

OUT_OF_MEMORY = "OOM"
# A GPU takes more tokens at a time: errors over several of its chunks need more of them.
_GPU_ERROR_TOKENS = 16


@dataclass
class Record:
    """What was found about one way in one case.

    Attributes:
        times: seconds of a step, one a round.
        memory: bytes added at the peak, the gradient of the head included.
        errors: largest error over largest fp64 value, by quantity.
        note: why something is missing; "OOM…" where memory ran out.
    """

    question: str
    group: int
    case: Case
    way: str
    times: list[float] = field(default_factory=list)
    memory: int | None = None
    errors: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def seconds(self) -> float | None:
        return median(self.times) if self.times else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "case": asdict(self.case)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Record":
        return cls(**{**fields, "case": Case(**fields["case"])})


@dataclass
class Entry:
    """A record being filled, and its step once it is ready."""

    record: Record
    way: Way
    step: Callable[[], Outcome | None] | None = None
    clear: Callable[[], None] = lambda: None

    @property
    def alive(self) -> bool:
        return not self.record.note


def measure(
    question: Question, group: int, of: Group, device: str, report: Callable[[str, float], None]
) -> list[Record]:
    """Everything about a group.

    Args:
        report: told what was done and its share of the group's work, 0..1.
    """
    torch._dynamo.reset()  # compiled ways would give up compiling after a few shapes
    entries = [
        Entry(Record(question.name, group, case, name), WAYS[name])
        for case in of.cases
        for name in of.ways
    ]
    shares = _shares(question, of, device)
    for case in of.cases:
        _errors([e for e in entries if e.record.case is case], case, question, device)
        report("errors", shares["errors"] / len(of.cases))
    if of.memory and device == "cpu":
        for name in of.ways:
            _cpu_memory([e for e in entries if e.record.way == name and e.alive])
            report(f"memory of {name}", shares["memory"] / len(of.ways))
    _prepare(entries, of, device)
    report("ready", shares["ready"])
    for done in _rounds(entries, question.rounds, device):
        report(f"round {done} of {question.rounds}", shares["round"])
    for entry in entries:
        entry.step = None
    _free(device)
    return [entry.record for entry in entries]


def _shares(question: Question, of: Group, device: str) -> dict[str, float]:
    """How much of the work each part is, roughly, in steps of one way."""
    steps = {"errors": 0.4, "memory": 1.0 if of.memory and device == "cpu" else 0.0}
    steps |= {"ready": 0.2 if device == "cpu" else 2.0, "round": 1.0}
    total = sum(steps.values()) + question.rounds - 1
    return {name: share / total for name, share in steps.items()}


def _errors(entries: list[Entry], case: Case, question: Question, device: str) -> None:
    """On fewer tokens of the same case, on none where the question asks for none; also the warm-up
    of the libraries."""
    if not question.error_tokens:
        return
    tokens = question.error_tokens * (1 if device == "cpu" else _GPU_ERROR_TOKENS)
    problem = build(case.cut(tokens), device)
    try:
        expected = truth(problem)
    except torch.OutOfMemoryError:  # fp64 heads are large; times are still worth having
        return
    for entry in entries:
        problem.clear()
        with _noting(entry):
            outcome = entry.way.ready(problem)()
            if outcome is not None:
                grads = problem.hidden.grad, problem.weight.grad
                found = Found(outcome.loss, outcome.logp, outcome.kl, *grads)
                entry.record.errors = errors(found, expected, problem.scored)


def _cpu_memory(entries: list[Entry]) -> None:
    """One process for all cases of a way; if it fails, none of them is run here."""
    if not entries or not entries[0].way.backward:
        return
    try:
        peaks = memory.on_cpu(entries[0].way.name, [entry.record.case for entry in entries])
    except (memory.OutOfMemory, RuntimeError) as error:
        kind = OUT_OF_MEMORY if isinstance(error, memory.OutOfMemory) else "failed"
        for entry in entries:
            entry.record.note = f"{kind}: {error}"
        return
    for entry, peak in zip(entries, peaks, strict=True):
        entry.record.memory = peak


def _prepare(entries: list[Entry], of: Group, device: str) -> None:
    """Problems and steps; a warm-up at full size on a GPU, and of what compiles."""
    for case in of.cases:
        problem = build(case, device)
        for entry in entries:
            if entry.record.case is not case or not entry.alive:
                continue
            with _noting(entry):
                entry.step, entry.clear = entry.way.ready(problem), problem.clear
                if entry.way.compiled or device != "cpu":
                    entry.clear()
                    entry.step()
                if device != "cpu" and of.memory and entry.way.backward:
                    entry.clear()
                    entry.record.memory = memory.on_gpu(entry.step)
            entry.clear()
            if not entry.alive:
                _free(device)


def _rounds(entries: list[Entry], rounds: int, device: str) -> Iterator[int]:
    for number in range(rounds):
        start = number % max(1, len(entries))
        for entry in entries[start:] + entries[:start]:
            if not entry.alive or entry.step is None:
                continue
            with _noting(entry):
                entry.record.times.append(_timed(entry, device))
            entry.clear()
            if not entry.alive:
                entry.record.times.clear()
                entry.step = None
                _free(device)
        yield number + 1


def _timed(entry: Entry, device: str) -> float:
    assert entry.step is not None, "entries are prepared before rounds"
    entry.clear()
    gc.collect()
    _wait(device)
    start = time.perf_counter()
    entry.step()
    _wait(device)
    return time.perf_counter() - start


class _noting:
    """Turns what goes wrong in one way into its note."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        first = (str(error).strip().splitlines() or [""])[0]
        if isinstance(error, Unavailable):
            self.entry.record.note = first
        elif isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in first:
            self.entry.record.note = f"{OUT_OF_MEMORY}: {first}"
        else:
            self.entry.record.note = f"failed: {type(error).__name__}: {first}"
        self.entry.step = None
        return True


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _free(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
