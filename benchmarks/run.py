"""Measures every question and writes a dated table, with progress and an end in sight.

    python -m benchmarks.run                       a CPU-sized subset (`make bench`)
    python -m benchmarks.run --long                1024 + 1024 tokens (`make bench-long`)
    python -m benchmarks.run --full                every way at every CPU size
    python -m benchmarks.run --gpu                 the full set on a GPU (`make bench-gpu`)
    python -m benchmarks.run --only bench_masked bench_loss --way prefkit trl
    python -m benchmarks.run --resume benchmarks/results/2026-11-21-cpu.json

From a checkout without an installation: PYTHONPATH=.:kernels/torch-ext. Needs torch, and what of
TRL, Liger, cut-cross-entropy and matplotlib is there.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.measure import Record, measure
from benchmarks.questions import FILES, Group, Question, load
from benchmarks.results import FOLDER, LEFT_OUT, Results
from benchmarks.ways import WAYS

# What the nominal machine takes, for the time to go.
_CPU_SPEED, _GPU_SPEED = 1e11, 3e14  # operations a second
_PRODUCTS = 6  # products of a head's size in a step, and work of their cost
_COMPILING, _STARTING = 10.0, 4.0  # seconds a compiled way, a process that measures memory
_FEW = 512  # tokens where only errors are taken


@dataclass
class Progress:
    """How much is done, in steps weighted by their size, and when the rest will be."""

    total: float
    minutes: float | None = None
    done: float = 0.0
    start: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def seconds_for(self, amount: float) -> float | None:
        """Expected time of an amount of work; None before anything is done."""
        return self.elapsed / self.done * amount if self.done else None

    def fits(self, amount: float) -> bool:
        """Whether an amount of work ends within the minutes given."""
        expected = self.seconds_for(amount)
        return (
            self.minutes is None
            or expected is None
            or (self.elapsed + expected <= 60 * self.minutes)
        )

    def say(self, what: str, amount: float = 0.0) -> None:
        self.done += amount
        left = self.seconds_for(self.total - self.done)
        ahead = "" if left is None else f", about {_clock(left)} to go"
        print(f"[{_clock(self.elapsed)}{ahead}] {what}", flush=True)


def run(
    questions: Sequence[Question],
    size: str,
    device: str,
    results: Results,
    ways: Sequence[str] = (),
    minutes: float | None = None,
) -> Results:
    """Measures the groups that `results` does not have yet; writes after each of them."""
    plan = [
        (question, number, _narrow(group, ways))
        for question in questions
        for number, group in enumerate(question.groups(size))
        if not results.has(question.name, number)
    ]
    plan = [item for item in plan if item[2].ways]
    amounts = [_amount(question, group, device) for question, _, group in plan]
    progress = Progress(sum(amounts), minutes)
    for (question, number, group), amount in zip(plan, amounts, strict=True):
        titles = "; ".join(case.title for case in group.cases)
        if not progress.fits(amount):
            progress.total -= amount
            progress.say(f"{question.name}: left out, beyond {minutes:g} minutes: {titles}")
            results.add(_left_out(question, number, group, minutes))
            continue
        progress.say(f"{question.name}: {titles}: {', '.join(group.ways)}")
        results.add(
            measure(
                question,
                number,
                group,
                device,
                lambda what, share, amount=amount: progress.say(f"  {what}", share * amount),  # type: ignore[misc]
            )
        )
    return results


def _narrow(group: Group, ways: Sequence[str]) -> Group:
    return replace(group, ways=tuple(w for w in group.ways if not ways or w in ways))


def _amount(question: Question, group: Group, device: str) -> float:
    """Seconds that the group would take on a nominal machine; only ratios of them are used."""
    steps = question.rounds + 1.5
    flops = sum(
        2 * _PRODUCTS * case.dim * case.vocab * (case.tokens if question.rounds else _FEW)
        for case in group.cases
    )
    compiling = sum(WAYS[name].compiled for name in group.ways) * _COMPILING * len(group.cases)
    starting = _STARTING * len(group.ways) if group.memory and device == "cpu" else 0.0
    speed = _CPU_SPEED if device == "cpu" else _GPU_SPEED
    return flops * len(group.ways) * steps / speed + compiling + starting


def _left_out(question: Question, number: int, group: Group, minutes: float | None) -> list[Record]:
    note = f"{LEFT_OUT}: it would have ended beyond the {minutes:g} minutes given"
    return [
        Record(question.name, number, case, name, note=note)
        for case in group.cases
        for name in group.ways
    ]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _check_same(before: dict[str, str], now: dict[str, str]) -> None:
    """Exits where a table would mix two machines, versions or commits."""
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            sys.exit(
                f"--resume: that file is of {name} {before.get(name)!r}, this run of "
                f"{now.get(name)!r}; start a new one"
            )


def _resumed(path: Path) -> Results:
    """The results to go on with; exits where the file is none of ours."""
    try:
        return Results.of(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"--resume: {path} is not the .json of an earlier run ({error!r})")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--gpu", action="store_true", help="the full set on the first GPU")
    size.add_argument("--full", action="store_true", help="every way at every CPU size")
    size.add_argument("--long", action="store_true", help="one pair of 1024 + 1024 tokens")
    parser.add_argument("--tiny", action="store_true", help="at shapes that take no time")
    parser.add_argument("--only", nargs="+", choices=FILES, help="these questions alone")
    parser.add_argument("--way", nargs="+", choices=list(WAYS), help="these ways alone")
    parser.add_argument("--minutes", type=float, help="leave out what would end later")
    parser.add_argument("--resume", type=Path, help="a results file (.json) to go on with")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with a message where there is no GPU for --gpu."""
    options = _options(arguments)
    if options.gpu and not torch.cuda.is_available():
        sys.exit("--gpu: torch finds no GPU here (torch.cuda.is_available() is False)")
    size = next((name for name in ("gpu", "full", "long") if getattr(options, name)), "cpu")
    size = "tiny" if options.tiny else size
    device = "cuda" if options.gpu else "cpu"
    narrowed = [*(options.only or ()), *(options.way or ())]
    suffix = "".join(f"-{word}" for word in narrowed) + (
        "" if size in ("cpu", "gpu") else f"-{size}"
    )
    if options.minutes is not None and not options.minutes > 0:
        sys.exit(f"--minutes must be > 0, got {options.minutes:g}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"--out: {error}")
    if options.resume:
        if options.way or options.tiny or size != "cpu" or options.out != FOLDER:
            sys.exit("--resume goes on with the file's own size, ways and folder: give no others")
        results = _resumed(options.resume)
        size = results.size
        _check_same(results.facts, machine.facts(device))
    else:
        results = Results.new(device, size, suffix, options.out)
    questions = [load(name) for name in FILES if not options.only or name in options.only]
    run(questions, size, device, results, options.way or (), options.minutes)
    written = results.write()
    print(results.markdown())
    print("written:", ", ".join(str(path) for path in written))


if __name__ == "__main__":
    main()
