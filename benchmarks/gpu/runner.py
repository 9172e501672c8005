"""One step: a process group of its own, its output read line by line, killed at its limit."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from benchmarks.gpu.telling import SECONDS

TAIL = 25  # lines of output kept of a step that did not end well
_GRACE = 2.0  # seconds between being asked to stop and being killed

OK, FAILED, KILLED, TIMED_OUT, LEFT_OUT = "ok", "failed", "killed", "timed out", "left out"


@dataclass
class Outcome:
    """What became of a step.

    Attributes:
        status: one of the five words above.
        why: in words, where it is not "ok".
        seconds: it ran; limit: it was given.
        rows: the JSON objects that it told, in order.
        tail: its last lines, where it did not end well.
    """

    name: str
    title: str
    status: str
    why: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether it came to an end of its own: taking it again would find the same."""
        return self.status in (OK, FAILED)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(
    name: str,
    title: str,
    command: Sequence[str],
    limit: float,
    env: Mapping[str, str],
    log: IO[str],
) -> Outcome:
    """Runs a command until it ends or its limit is over; nothing that it started is left behind.

    Args:
        command: program and arguments; it is told its limit in `telling.SECONDS`.
        limit: seconds.
        env: the whole environment.
        log: gets every line of output.
    """
    log.write(f"\n== {name} (limit {limit:.0f} s): {' '.join(command)}\n")
    log.flush()
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        env={**env, SECONDS: f"{limit:.1f}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a group of its own, so that its children can be killed with it
    )
    told, tail = [], deque[str](maxlen=TAIL)

    def read() -> None:
        assert process.stdout is not None, "a pipe was asked for"
        for line in process.stdout:
            log.write(line)
            log.flush()
            found = _told(line)
            if found is None:
                tail.append(line.rstrip()[:500])
            else:
                told.append(found)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    timed_out = False
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        timed_out = True
        _signal(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    finally:  # also where this process is interrupted
        _signal(process.pid, signal.SIGKILL)
        process.wait()
    reader.join(_GRACE)
    seconds = time.monotonic() - start
    status, why = _judge(process.returncode, timed_out, limit)
    log.write(f"== {name}: {status} after {seconds:.1f} s{': ' + why if why else ''}\n")
    log.flush()
    kept = [] if status == OK else list(tail)
    return Outcome(name, title, status, why, round(seconds, 1), limit, list(told), kept)


def _judge(code: int, timed_out: bool, limit: float) -> tuple[str, str]:
    if timed_out:
        return TIMED_OUT, f"stopped at its limit of {limit:.0f} s"
    if code < 0:
        return KILLED, f"killed by {signal.Signals(-code).name}"
    return (FAILED, f"exit code {code}") if code else (OK, "")


def _told(line: str) -> dict[str, Any] | None:
    """The JSON object that a line holds, if it holds one."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _signal(group: int, number: signal.Signals) -> None:
    """To everything in a process group that is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
