"""How a step tells what it found: one JSON object a line, out at once, so that a kill keeps it.

Three kinds of lines end up in the page: `check` (something that is right or not), `row` (a line of
a named table) and `markdown` (a finished piece of the page). Others are kept in the JSON alone.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any

REHEARSE = "PREFKIT_GPU_REHEARSE"  # "1" in the steps of a rehearsal
SECONDS = "PREFKIT_GPU_SECONDS"  # of a step's limit
_START = time.monotonic()


def rehearsing() -> bool:
    """Whether this process shows that the code runs, on a CPU, and measures nothing."""
    return os.environ.get(REHEARSE) == "1"


def device() -> str:
    """ "cuda", or "cpu" in a rehearsal.

    Raises:
        SystemExit: no GPU, and not a rehearsal.
    """
    if rehearsing():
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here (torch.cuda.is_available() is False)")
    return "cuda"


def seconds_left() -> float:
    """Until this step is stopped; infinite where it has no limit."""
    return float(os.environ.get(SECONDS, "inf")) - (time.monotonic() - _START)


def tell(**fields: Any) -> None:
    """One line."""
    print(json.dumps(fields, ensure_ascii=False), flush=True)


def row(table: str, **cells: Any) -> None:
    """A line of a table; rows of one table may have different cells."""
    tell(row=table, **cells)


def wait(where: str) -> None:
    """Until the device has done what it was asked."""
    if where != "cpu":
        import torch

        torch.cuda.synchronize()


def median_ms(run: Callable[[], object], where: str, budget_ms: float = 40.0) -> float:
    """Median time of a call in milliseconds, the L2 cache emptied before each on a GPU."""
    if where == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    from triton.testing import do_bench

    return float(do_bench(run, warmup=5, rep=int(budget_ms), return_mode="median"))


class Checks:
    """Runs checks one after another; none that fails stops the others."""

    def __init__(self, where: str) -> None:
        self.where, self.failed, self.lost = where, 0, False

    def __call__(
        self, name: str, check: Callable[[], dict[str, Any]], gpu_only: bool = False
    ) -> None:
        """Tells what `check` returns: {"ok": bool or None, …}; None is skipped, with "why".

        Args:
            gpu_only: the check asks for what only a GPU has; elsewhere its work is done without
                being judged, so that the code has run.
        """
        start = time.perf_counter()
        if self.lost:
            tell(check=name, ok=None, why="not run: an earlier check lost the GPU's context")
            return
        try:
            found = {"ok": True, **check()}
            wait(self.where)
        except Exception as error:  # the others are still worth having
            found = {"ok": False, "why": f"{type(error).__name__}: {str(error)[:300]}"}
            found["where"] = _place(error)
            self.lost = _is_lost(self.where)
        if gpu_only and self.where == "cpu" and found["ok"]:
            found = {"ok": None, "why": "not run: no GPU"}
        self.failed += found["ok"] is False
        tell(check=name, seconds=round(time.perf_counter() - start, 2), **found)

    def exit(self) -> None:
        """Ends the process: with 1 where a check failed."""
        raise SystemExit(1 if self.failed else 0)


def _is_lost(where: str) -> bool:
    """Whether nothing runs on the GPU any more: what a kernel has asserted stays, call by call."""
    try:
        wait(where)
    except Exception:
        return True
    return False


def _place(error: Exception) -> str:
    """File and line where an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
