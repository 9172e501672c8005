"""Runs the code steps of a solution, so that what stands in their output is what they print.

A model's code is run only where the user asks for it (`interpreter: python`). The limits here are
made against accidents: endless loops, memory, floods of output, a stray file or process. They are
no sandbox: code that means harm gets out, and reads what the user may read, the environments of
other processes and their keys included. Run models that you do not trust in a container.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from prefkit.errors import ConfigError

_CHILD = Path(__file__).with_name("interpreter_child.py")
CUT = "… (output cut)"


class Interpreter(Protocol):
    """Runs a solution's code."""

    def run(self, code: str, before: Sequence[str] = ()) -> str:
        """What a code block prints, an exception's text included.

        Args:
            code: the block.
            before: the solution's earlier blocks, whose names it may use.
        """
        ...


class PythonInterpreter:
    """Every block in a Python process of its own, in an empty folder that is deleted afterwards.

    Earlier blocks are run again first, silently, so that their names are there. Hashes are fixed
    and what was printed before a time limit is left out, so that the same code prints the same on
    every run, but for code that reads the clock or draws numbers.

    Threads may share an interpreter; no more of them than cores, or a block that computes for long
    runs into the clock's limit, which the same code alone would not.

    No sandbox: see the module.

    Args:
        seconds: of computing (and twice that on the clock) for a block with those before it.
        memory_mb: address space in MiB.
        most_chars: of output; the rest is cut, which is marked.

    Raises:
        ConfigError: a limit out of range, or a system without process limits (Windows).
    """

    def __init__(self, seconds: float = 5.0, memory_mb: int = 512, most_chars: int = 2000) -> None:
        if os.name != "posix":
            raise ConfigError("interpreter: python needs the process limits of Linux or macOS.")
        if seconds <= 0 or memory_mb < 64 or most_chars < 1:
            raise ConfigError(
                f"interpreter: seconds {seconds}, memory_mb {memory_mb}, most_chars {most_chars}; "
                "give more than 0, at least 64, at least 1."
            )
        self.seconds, self.memory_mb, self.most_chars = seconds, memory_mb, most_chars

    def run(self, code: str, before: Sequence[str] = ()) -> str:
        """See `Interpreter.run`; "" where nothing is printed."""
        job = {
            "code": code,
            "before": list(before),
            "seconds": self.seconds,
            "memory": self.memory_mb << 20,
        }
        with tempfile.TemporaryDirectory(prefix="prefkit-code-") as folder:
            # Not -I: it would ignore PYTHONHASHSEED. A clean environment, -P and -s do the same.
            process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-B", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,
            )
            try:
                output, why = self._talk(process, json.dumps(job).encode())
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):
                        pipe.close()  # type: ignore[union-attr]
        if why == "time" or process.returncode == -signal.SIGXCPU:
            return f"TimeoutError: stopped after {self.seconds:g} s"
        if why == "flood":
            return output[: self.most_chars] + CUT
        if process.returncode < 0 and not why:
            name = signal.Signals(-process.returncode).name
            output += f"The process was ended by {name}."
        return output

    def _talk(self, process: "subprocess.Popen[bytes]", job: bytes) -> tuple[str, str]:
        """The output so far, and why it ended: "" by itself, "time", "flood"."""
        until = time.monotonic() + 2 * self.seconds
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job)  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]
        found = bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            while (left := until - time.monotonic()) > 0:
                if not ready.select(left):
                    break
                piece = os.read(process.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
                found += piece
                if not piece:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(max(0.0, until - time.monotonic()))
                        return _decoded(found), ""
                    break
                if len(_decoded(found)) > self.most_chars:
                    return _decoded(found), "flood"
        return _decoded(found), "time"


def _decoded(output: bytearray) -> str:
    return output.decode("utf-8", errors="replace")


def _environment(folder: str) -> dict[str, str]:
    """As little as Python needs; one thread, since each takes address space."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "PATH": os.defpath,
        "HOME": folder,
        "TMPDIR": folder,
        "PYTHONHASHSEED": "0",
        "PYTHONIOENCODING": "utf-8",
        **dict.fromkeys(threads, "1"),
    }
