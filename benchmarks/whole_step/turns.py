"""Processes that take turns, a step each, so that a machine's drift meets all alike."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.memory import ALLOCATOR
from benchmarks.whole_step.shapes import Shape


@dataclass(frozen=True)
class Result:
    """One way's steps of one shape.

    Attributes:
        seconds: of each step.
        tokens: of both sides of a pair.
        memory: peak, bytes above the idle process.
        read: tokens that the policy read in one step (a shared prefix once).
        kept: bytes of weights, their gradients, AdamW's moments and the reference.
    """

    seconds: list[float]
    tokens: int
    memory: int
    read: int = 0
    kept: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Contestant:
    """A child process that takes one step a turn."""

    def __init__(
        self,
        way: str,
        shape: Any,
        model: str | None,
        steps: int,
        wait: bool = True,
        profile: bool = False,
        module: str = "benchmarks.whole_step",
        more: Sequence[str] = (),
        allocator: Mapping[str, str] = ALLOCATOR,
    ) -> None:
        """Starts the process; `wait` False: several can start at once, then `ready` is theirs.

        With `profile`, `kernels` has those of the last step. `module` is what runs, and `more` are
        further words of its command line. `allocator`: variables; the usual ones give every free
        byte back at once, which makes peaks exact and steps of many small tensors slower.
        """
        command = [sys.executable, "-m", module, "--child", way, *more]
        command += ["--child-shape", json.dumps(asdict(shape)), "--rounds", str(steps)]
        command += ["--model", model or ""] + ["--child-profile"] * profile
        # Threads that wait must sleep: those of the ways that are not at turn would take the cores.
        quiet = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
        environment = {**os.environ, **allocator, **quiet}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.way = way
        self.said: list[str] = []
        self.seconds: list[float] = []
        self.tokens = self.memory = self.read = self.kept = 0
        self.kernels: list[tuple[str, float, int]] = []
        if wait:
            self.ready()

    def ready(self) -> None:
        """Waits until the first step can be taken."""
        told = self._next()
        self.tokens, self.kept = int(told["tokens"]), int(told.get("kept", 0))

    def _next(self) -> dict[str, Any]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("@"):
                return dict(json.loads(line[1:]))
            self.said.append(line)
        code = self.process.wait()
        why = " (killed, as when memory runs out: let fewer ways take turns)" if code < 0 else ""
        raise RuntimeError(f"{self.way} ended, exit status {code}{why}\n{''.join(self.said[-15:])}")

    def step(self) -> dict[str, Any]:
        """One optimiser step, timed by the child, and what the child told of it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # one that ended: `_next` says how
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        told = self._next()
        self.seconds.append(told["seconds"])
        self.memory, self.read = told["memory"], told["read"]
        self.kernels = told.get("kernels", [])
        return told

    def result(self) -> Result:
        """Of the steps after the first, which is warm-up."""
        return Result(self.seconds[1:], self.tokens, self.memory, self.read, self.kept)


def measure(shape: Shape, ways: Sequence[str], model: str | None, rounds: int) -> dict[str, Result]:
    """All ways, taking turns; the first step of each is warm-up and memory, not time.

    Raises:
        RuntimeError: a way failed; with its last lines.
    """
    running = {way: Contestant(way, shape, model, rounds + 1) for way in ways}
    try:
        for turn in range(rounds + 1):
            order = list(running)
            for way in order[turn % len(order) :] + order[: turn % len(order)]:
                running[way].step()
    finally:
        for one in running.values():
            one.process.kill()
    return {way: one.result() for way, one in running.items()}
