"""Progress on stderr: one kind of bar for everything that takes long, and lines above it."""

import sys
import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

SECONDS = 15.0  # between two lines where stderr is no terminal


class Progress:
    """How far, how fast, and how long still; a context manager, safe to share among threads.

    The time left follows from the average speed of this run: what was done before does not count.
    Nothing is written before the first `add`, so work that was all done before shows no bar.

    Args:
        total: units of all runs.
        what: what is being done ("Scoring").
        unit: what is counted ("tok").
        done: units that were done before.
        shown: False = nothing is written.
        tallies: what else is counted, and how much of it was done before ({"pairs": 3}).
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str,
        *,
        done: int = 0,
        shown: bool = True,
        tallies: Mapping[str, int] | None = None,
    ) -> None:
        self._total, self._what, self._unit = total, what, unit
        self._done, self._shown = done, shown
        self._tallies = Counter(tallies or {})
        self._lock = threading.Lock()
        self._bar: _Bar | None = None

    def skip(self, count: int) -> None:
        """These units were done before; to be told before they are added to."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.initial += count
                self._bar.n += count

    def add(self, count: int = 0, **tallies: int) -> None:
        """More units are done; `tallies` are added to what is shown behind the bar."""
        with self._lock:
            if self._bar is None:
                self._bar = self._open()
            self._tallies.update(tallies)
            told = ", ".join(f"{number:,} {name}" for name, number in self._tallies.items())
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _open(self) -> "_Bar":
        return _Bar(
            total=self._total,
            initial=self._done,
            desc=self._what,
            unit=self._unit,
            disable=not self._shown,
            file=sys.stderr,
            smoothing=0,  # the average of the run
            miniters=0,
            mininterval=0.5 if sys.stderr.isatty() else SECONDS,
            dynamic_ncols=True,
        )


class _Bar(tqdm):
    """tqdm that writes whole lines where stderr is a file."""

    @staticmethod
    def status_printer(file: Any) -> Any:
        if file.isatty():
            return tqdm.status_printer(file)

        def print_line(text: str) -> None:
            if text.strip():
                print(text, file=file, flush=True)

        return print_line


def say(line: str) -> None:
    """One line to the user, on stderr, above the bars."""
    tqdm.write(f"prefkit: {line}", file=sys.stderr)
    sys.stderr.flush()
