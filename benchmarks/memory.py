"""Peak memory that one step adds to what its inputs hold.

On a CPU the peak resident size of a process of its own, reset just before the step: what a way
really holds, whoever allocated it. On a GPU the peak of torch's allocator.

    python -m benchmarks.memory --way trl --cases '[{"loss": "dpo", "tokens": 512, …}]'
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from benchmarks.problems import Case, build
from benchmarks.ways import WAYS

_WARM_UP_TOKENS = 64
# Freed buffers go back to the system at once, so that the peak is of what is really held.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class OutOfMemory(Exception):
    """The process that measured was killed, or an allocation in it failed."""


def on_cpu(way: str, cases: Sequence[Case]) -> list[int]:
    """Bytes added by one step of each case, one after another in one fresh process.

    Raises:
        OutOfMemory: the machine has too little for one of them.
        RuntimeError: the process failed otherwise; the message is its last line.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--way", way]
    command += ["--cases", json.dumps([asdict(case) for case in cases])]
    env = {**os.environ, **ALLOCATOR}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if done.returncode == -9 or "allocate memory" in last or "MemoryError" in last:
            raise OutOfMemory(last)
        raise RuntimeError(last)
    return list(json.loads(done.stdout.splitlines()[-1]))


def on_gpu(step: Callable[[], object]) -> int:
    """Bytes that the step adds to torch's allocator at its peak."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_peak(step: Callable[[], object]) -> int:
    """Bytes that the step adds to this process's resident size at its peak (Linux)."""
    give_back()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def give_back() -> None:
    """Hands memory that nothing uses to the system, for others on this machine (glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def status(field: str) -> int:
    """Bytes of a field of this process: VmRSS, its resident size, or VmHWM, the largest so far."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


def _measure(name: str, case: Case) -> int:
    """After a warm-up: libraries are loaded, and a compiled way has compiled this very shape."""
    way = WAYS[name]
    way.ready(build(case if way.compiled else case.cut(_WARM_UP_TOKENS)))()
    problem = build(case)
    return resident_peak(way.ready(problem))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--way", choices=list(WAYS), required=True)
    parser.add_argument("--cases", required=True, help="JSON list of the fields of Case")
    options = parser.parse_args()
    cases = [Case(**fields) for fields in json.loads(options.cases)]
    print(json.dumps([_measure(options.way, case) for case in cases]))


if __name__ == "__main__":
    main()
