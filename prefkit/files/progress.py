"""Progress on stderr: one kind of bar for everything that takes long, and lines beside it."""

import sys
from typing import Any

from tqdm import tqdm

SECONDS = 15.0  # between two lines where stderr is no terminal


class Bar(tqdm):
    """tqdm as prefkit shows it: a line of its own every fifteen seconds where stderr is a file.

    The time left is that of the average speed of this run; what an earlier run did (`initial`)
    does not count as fast. A bar is not safe to call from several threads at once.
    """

    @staticmethod
    def status_printer(file: Any) -> Any:
        if file.isatty():
            return tqdm.status_printer(file)

        def print_line(text: str) -> None:
            if text.strip():
                print(text, file=file, flush=True)

        return print_line


def progress_bar(
    total: int, what: str, unit: str, *, done: int = 0, shown: bool = True, **more: Any
) -> Bar:
    """A bar to be used as a context manager, with `update(count)`.

    Args:
        total: units of all runs.
        what: what is being done ("Scoring").
        unit: what is counted ("tok").
        done: units that an earlier run did.
        shown: False = nothing is written.
        more: further arguments of tqdm.
    """
    return Bar(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        disable=not shown,
        file=sys.stderr,
        smoothing=0,
        miniters=1,
        mininterval=0.5 if sys.stderr.isatty() else SECONDS,
        dynamic_ncols=True,
        **more,
    )


def say(line: str) -> None:
    """One line to the user, on stderr, above the bars."""
    tqdm.write(f"prefkit: {line}", file=sys.stderr)
    sys.stderr.flush()
