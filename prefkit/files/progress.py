"""One line on stderr that says how far a build is, how fast, and how long it will take."""

import sys
import threading
import time


class Progress:
    """Counts questions and pairs of all runs, tokens of this one; safe to call from threads.

    Args:
        noun: what the rows are ("pairs").
        seconds: pause between two lines; on a terminal the line is rewritten every second.
    """

    def __init__(self, noun: str = "pairs", seconds: float = 15.0) -> None:
        self._noun = noun
        self._lock = threading.Lock()
        self._terminal = sys.stderr.isatty()
        self._pause = 1.0 if self._terminal else seconds
        self._began = self._said = time.monotonic()
        self._total = self._before = self._done = self._pairs = self._tokens = 0
        self._together = 1

    def begin(self, total: int, done: int, pairs: int = 0, together: int = 1) -> None:
        """`total` questions, of which an earlier run finished `done`, with so many pairs.

        Questions that go through their stages `together` end together: before so many have ended,
        their number says nothing of the time left.
        """
        self._total, self._before, self._together = total, done, together
        self._pairs = pairs
        self._began = self._said = time.monotonic()
        if done:
            print(f"{done:,} of {total:,} questions are done already.", file=sys.stderr, flush=True)

    def tokens(self, count: int) -> None:
        """`count` more tokens were sampled."""
        with self._lock:
            self._tokens += count
            self._say()

    def question(self, pairs: int) -> None:
        """One more question is finished, with so many pairs."""
        with self._lock:
            self._done += 1
            self._pairs += pairs
            self._say(last=self._before + self._done == self._total)

    def _say(self, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._said < self._pause:
            return
        self._said = now
        seconds = max(now - self._began, 1e-9)
        left = self._total - self._before - self._done
        told = self._done >= self._together and left
        eta = f", about {_span(seconds / self._done * left)} left" if told else ""
        done = self._before + self._done
        line = (
            f"{done:,} of {self._total:,} questions, {self._pairs:,} {self._noun}, "
            f"{self._tokens:,} tokens ({self._tokens / seconds:,.0f}/s){eta}"
        )
        end = "\n" if last or not self._terminal else ""
        print(f"\r\033[K{line}" if self._terminal else line, end=end, file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
