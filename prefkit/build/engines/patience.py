"""Calls a server again until it answers, and says so once, however many threads are waiting.

A server may be restarted, moved or overloaded in the middle of a build of hours; a request that can
never succeed must end the build at once instead.
"""

import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from prefkit.errors import PrefkitError

T = TypeVar("T")
# Seconds before the first retry; they double up to the longest. Eight of them are three minutes.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
# So often may a server that is there fail on one and the same request before it is given up.
_INTERNAL_ERRORS = 3


class Unfinished(Exception):
    """The server answered, but not with a completion: it is asked again."""


class Patience:
    """Retries with growing, scattered pauses.

    Args:
        url: of the server.
        retries: how often a failed call is tried again.
    """

    def __init__(self, url: str, retries: int) -> None:
        parts = urlsplit(url)
        self.url, self.retries = url, retries
        self._address = (
            parts.hostname or "",
            parts.port or (443 if parts.scheme == "https" else 80),
        )
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._down_since: float | None = None

    def call(self, what: str, send: Callable[[], T]) -> T:
        """What `send` returns.

        Args:
            what: the request, for messages.
            send: makes one call with the openai client, whose own retries are off.

        Raises:
            PrefkitError: the server refuses the request, or has not answered after all retries.
        """
        from openai import APIConnectionError, APIStatusError

        internal = 0
        for attempt in range(self.retries + 1):
            try:
                answer = send()
            except APIStatusError as error:
                status = error.status_code
                internal += status == 500
                if status < 500 and status not in (408, 409, 429):
                    raise PrefkitError(self._refused(what, status, words(error))) from error
                if internal >= _INTERNAL_ERRORS:
                    raise PrefkitError(self._broken(what, words(error))) from error
                reason, asked = f"HTTP {status}: {words(error)}", _retry_after(error)
                failure: Exception = error
            except (APIConnectionError, Unfinished) as error:
                reason, asked, failure = words(error), 0.0, error
            else:
                self._is_up()
                return answer
            if attempt < self.retries:
                self._is_down(reason)
                self._pause(max(_wait(attempt), asked), isinstance(failure, APIConnectionError))
        raise PrefkitError(
            f"The server {self.url} did not answer {what} in {self.retries + 1} attempts "
            f"({reason}). Start it again and repeat the command: what is done is kept."
        ) from failure

    def close(self) -> None:
        """Ends every pause at once."""
        self._closed.set()

    def _pause(self, seconds: float, unreachable: bool) -> None:
        """Waits; where nobody answered, only until somebody listens there again."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._closed.wait(min(left, 0.5)):
                raise PrefkitError(f"Waiting for the server {self.url} was ended.")
            if unreachable and self._listens():
                return

    def _listens(self) -> bool:
        try:
            socket.create_connection(self._address, timeout=1).close()
        except OSError:
            return False
        return True

    def _is_down(self, reason: str) -> None:
        with self._lock:
            if self._down_since is None:
                self._down_since = time.monotonic()
                say(f"the server {self.url} does not answer ({reason}); waiting for it.")

    def _is_up(self) -> None:
        with self._lock:
            if self._down_since is not None:
                seconds = time.monotonic() - self._down_since
                self._down_since = None
                say(f"the server {self.url} answers again after {seconds:.0f} s.")

    def _refused(self, what: str, status: int, reason: str) -> str:
        remedies = {
            401: "Put its key into the variable OPENAI_API_KEY.",
            403: "Put a key that may do this into the variable OPENAI_API_KEY.",
            404: "Check the URL's path (…/v1) and the model's name on the server.",
        }
        remedy = "A prompt that is too long, a wrong model name and a setting that the server does "
        remedy += "not know are the usual reasons."
        return (
            f"The server {self.url} refuses {what} (HTTP {status}): {reason}. "
            f"{remedies.get(status, remedy)}"
        )

    def _broken(self, what: str, reason: str) -> str:
        return (
            f"The server {self.url} fails on {what} every time (HTTP 500): {reason}. A prompt "
            "that with max_tokens is longer than the model reads, and a model that cannot be "
            "loaded, are the usual reasons; the server's own log tells."
        )


def say(line: str) -> None:
    """One line to the user, on stderr."""
    print(f"prefkit: {line}", file=sys.stderr, flush=True)


def words(error: Exception) -> str:
    """An error in one line of at most 300 characters, with the server's own words."""
    response = getattr(error, "response", None)
    text = getattr(response, "text", "") or str(error)
    if (cause := error.__cause__) is not None and str(cause):
        text += f" ({cause})"
    return " ".join(text.split())[:300] or type(error).__name__


def _wait(attempt: int) -> float:
    return min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.75, 1.25)


def _retry_after(error: object) -> float:
    """Seconds that a busy server asks for, up to two minutes."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return min(float(headers.get("retry-after", 0)), 120.0)
    except ValueError:
        return 0.0
