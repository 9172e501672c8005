"""Runs tasks in two processes of one thread each, says how long it will take, keeps results."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.papers.journal import Journal


@dataclass(frozen=True)
class Task:
    """One piece of work, done in a process of its own.

    Attributes:
        key: in the journal.
        function: importable; called with `arguments`, returns the record without its key.
        expected: seconds it is thought to take, for the projection before anything is measured.
    """

    key: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]
    expected: float


@dataclass
class Clock:
    """Time spent and time still needed.

    Attributes:
        minutes: the budget; past it no task is started.
        planned: expected seconds of all that is not done, in all phases.
        taken, expected: seconds of what is done, as measured and as thought.
    """

    minutes: float
    workers: int
    planned: float
    taken: float = 0.0
    expected: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def is_over(self) -> bool:
        return self.elapsed > 60 * self.minutes

    def done(self, task: Task, seconds: float) -> None:
        self.taken += seconds
        self.expected += task.expected
        self.planned -= task.expected

    @property
    def projection(self) -> float:
        """Seconds of the whole run, from what the tasks so far took against what was expected."""
        ratio = self.taken / self.expected if self.expected else 1.0
        return self.elapsed + self.planned * ratio / max(1, self.workers)

    def __str__(self) -> str:
        return f"{self.elapsed / 60:5.1f} min of about {self.projection / 60:.0f}"


def run(tasks: Sequence[Task], journal: Journal, clock: Clock, log: Path) -> None:
    """Does the tasks that the journal does not have yet; stops starting new ones out of time.

    Args:
        clock: with 0 workers everything runs in this process.
        log: a file for what the processes print.

    Raises:
        Exception: the first error of a task; those that are done are kept.
    """
    waiting = [task for task in tasks if task.key not in journal]
    if clock.workers == 0:
        for task in waiting:
            _keep(task, timed(task.function, task.arguments), journal, clock)
        return
    if not waiting:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(clock.workers, context, one_thread, (str(log),)) as pool:
        running: dict[Future, Task] = {}
        while waiting or running:
            while waiting and len(running) < clock.workers and not clock.is_over:
                task = waiting.pop(0)
                running[pool.submit(timed, task.function, task.arguments)] = task
            if not running:
                print(f"  out of time: {len(waiting)} tasks are left out", flush=True)
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                _keep(running.pop(future), future.result(), journal, clock)


def _keep(task: Task, done: tuple[dict[str, Any], float], journal: Journal, clock: Clock) -> None:
    record, seconds = done
    journal.add({"key": task.key, "seconds": round(seconds, 1), **record})
    clock.done(task, seconds)
    shown = {
        name: round(value, 3) for name, value in record.items() if isinstance(value, int | float)
    }
    print(f"{clock}  {task.key}  {seconds:.0f} s  {shown}", flush=True)


def timed(
    function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]
) -> tuple[dict[str, Any], float]:
    """What a function returns, and the seconds it took."""
    began = time.monotonic()
    return function(*arguments), time.monotonic() - began


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, killed or not.

    A pool's worker whose parent was killed would finish its task for nobody, and keep its core. The
    pipe that multiprocessing keeps to the parent closes with it, on every system.
    """
    import os

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def one_thread(log: str) -> None:
    """A process of its own shares the machine with another: one thread, and no chatter."""
    import logging
    import os

    end_with_parent()
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
