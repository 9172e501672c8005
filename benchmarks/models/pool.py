"""Runs a function for many types, each in a process of its own that is forked from this one.

A crash, an endless loop or an explosion of memory in one type ends that process alone. Forking
saves the import of torch and transformers, eight seconds a type; the parent must not have started
threads of torch before.
"""

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

_MEMORY = 8 << 30  # bytes of address space a type may take beyond what is there at its start
_FORK = multiprocessing.get_context("fork")


@dataclass
class _Running:
    """A type that is being looked at."""

    name: str
    process: Any
    answer: Connection
    start: float = field(default_factory=time.monotonic)


def each_by_itself(
    function: Callable[[str], Any], names: Sequence[str], jobs: int, seconds: float
) -> Iterator[tuple[str, Any]]:
    """What the function returns for each name, or a string that says how its process ended.

    Args:
        function: called with a name; what it returns must go through a pipe.
        names: in the order in which they are begun.
        jobs: processes at a time.
        seconds: that one may take.
    """
    waiting, running = list(names), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_begin(function, waiting.pop(0)))
            ready = wait([one.answer for one in running], timeout=1.0)
            for one in list(running):
                late = time.monotonic() - one.start > seconds
                if one.answer not in ready and not late:
                    continue
                running.remove(one)
                yield one.name, _end(one, one.answer in ready, seconds)
    finally:
        for one in running:
            one.process.kill()


def _begin(function: Callable[[str], Any], name: str) -> _Running:
    ours, theirs = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_work, args=(function, name, theirs))
    process.start()
    theirs.close()
    return _Running(name, process, ours)


def _end(one: _Running, answered: bool, seconds: float) -> Any:
    """The answer of a process, or how it ended without one."""
    answer: Any = f"took more than {seconds:.0f} s"
    if answered:
        try:
            answer = one.answer.recv()
        except EOFError:
            one.process.join()
            answer = f"its process died with exit code {one.process.exitcode}"
    one.process.kill()
    one.process.join()
    one.answer.close()
    return answer


def _work(function: Callable[[str], Any], name: str, answer: Connection) -> None:
    """The life of a forked process: silent, with a bound on its memory."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        bound = _mapped() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        with contextlib.closing(answer):
            answer.send(function(name))
        os._exit(0)  # what the parent registered for its own exit is not ours


def _mapped() -> int:
    """Bytes of address space that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
