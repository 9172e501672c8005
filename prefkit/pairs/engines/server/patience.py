"""Calls a server again until it answers, and knows the refusals that asking again cannot help.

A server may be restarted, moved or overloaded in the middle of a build of hours; a request that can
never succeed must end the build at once instead. All waiting threads together say once that they
wait. A prompt that fits is refused whenever `max_tokens` more would not, so fewer are asked for
before the prompt is given up: one question among thousands must not end a build.
"""

import contextlib
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from prefkit.errors import PrefkitError
from prefkit.files.progress import say

T = TypeVar("T")
# Seconds before the first retry; they double up to the longest. Eight of them are three minutes.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
# Retries before a build has begun, when nothing is lost by giving up: seven seconds.
_FEW = 3
_BUSY = (408, 409, 425, 429)
# What a server writes with a status of 5xx when it means 4xx.
_BLAME = re.compile(r"invalid.?request|bad.?request|validation.?error|not.?implemented", re.I)


class Unfinished(Exception):
    """The server answered, but not with a completion: it is asked again."""


class Patience:
    """Retries with growing, scattered pauses.

    Args:
        url: of the server.
        retries: how often a failed call is tried again.
        first_wait: seconds before the first retry; they double up to sixty times as many.
    """

    def __init__(self, url: str, retries: int, *, first_wait: float = FIRST_WAIT) -> None:
        parts = urlsplit(url)
        self.url, self.retries, self.first_wait = url, retries, first_wait
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
            TooLong: as `send` raises it.
        """
        from openai import APIConnectionError, APIStatusError

        retries, hurried = self.retries, False
        for attempt in range(retries + 1):
            try:
                answer = send()
            except APIStatusError as error:
                if _blames_the_request(error):
                    raise PrefkitError(
                        self._refused(what, error.status_code, words(error))
                    ) from error
                reason, asked = f"HTTP {error.status_code}: {words(error)}", _retry_after(error)
                failure: Exception = error
            except TooLong:
                self._is_up()
                raise
            except (APIConnectionError, Unfinished) as error:
                reason, asked, failure = words(error), 0.0, error
            else:
                self._is_up()
                return answer
            if attempt < retries:
                self._is_down(reason)
                # Once only: something that listens now and then is not a server that is back.
                hurry = not hurried and _was_refused(failure)
                hurried |= self._pause(max(self._wait(attempt), asked), hurry)
        if getattr(failure, "status_code", None) == 500:
            raise self.broken(what, failure) from failure
        raise PrefkitError(
            f"The server {self.url} did not answer {what} in {retries + 1} attempts "
            f"({reason}). Start it again and repeat the command: what is done is kept."
        ) from failure

    def close(self) -> None:
        """Ends every pause at once."""
        self._closed.set()

    @contextlib.contextmanager
    def short(self) -> Iterator[None]:
        """A few retries only, for calls before a build has begun."""
        whole, self.retries = self.retries, min(self.retries, _FEW)
        try:
            yield
        finally:
            self.retries = whole

    def broken(self, what: str, error: Exception) -> PrefkitError:
        """For a server that works, and fails on one request every time."""
        return PrefkitError(
            f"The server {self.url} fails on {what} every time (HTTP 500): {words(error)}. A model "
            "that cannot be loaded or has run out of memory, and messages for a model without a "
            "chat template, are the usual reasons; the server's own log tells."
        )

    def _wait(self, attempt: int) -> float:
        longest = self.first_wait * LONGEST_WAIT / FIRST_WAIT
        return min(self.first_wait * 2**attempt, longest) * random.uniform(0.75, 1.25)

    def _pause(self, seconds: float, hurry: bool) -> bool:
        """Waits, in a hurry only until somebody listens there; whether it ended so."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._closed.wait(min(left, self.first_wait / 2)):
                raise PrefkitError(f"Waiting for the server {self.url} was ended.")
            if hurry and self._listens():
                return True
        return False

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


def words(error: Exception) -> str:
    """An error in one line of at most 300 characters, with the server's own words."""
    response = getattr(error, "response", None)
    text = getattr(response, "text", "") or str(error)
    if (cause := error.__cause__) is not None and str(cause):
        text += f" ({cause})"
    return " ".join(text.split())[:300] or type(error).__name__


def _blames_the_request(error: Any) -> bool:
    """Whether asking again cannot help: 4xx but for a busy server's, and 5xx that says so."""
    if error.status_code < 500:
        return error.status_code not in _BUSY
    return bool(_BLAME.search(words(error)))


def _was_refused(failure: BaseException | None) -> bool:
    """Whether nothing listened, as while a server is being started: a balancer accepts."""
    while failure is not None and not isinstance(failure, ConnectionRefusedError):
        failure = failure.__cause__ or failure.__context__
    return failure is not None


def _retry_after(error: object) -> float:
    """Seconds that a busy server asks for, up to two minutes."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return min(float(headers.get("retry-after", 0)), 120.0)
    except ValueError:
        return 0.0


# Fewer tokens than these are not asked for: no solution or step is so short.
FEWEST = 16
_STATUS = (400, 413, 422, 500)
_WORDS = re.compile(
    r"context.?(length|size|window)|max_model_len|longer than the (maximum|model)"
    r"|maximum (model|input|sequence|allowed) length"
    r"|(prompt|input|request|sequence|messages?)\b[^.]{0,60}\btoo (long|large)",
    re.IGNORECASE,
)
# vLLM, SGLang and OpenAI write both numbers in one of these ways.
_CONTEXT = re.compile(r"(?:context|model) length (?:is |of |\()(?:only )?(\d+)", re.IGNORECASE)
_PROMPT = re.compile(
    r"(\d+) (?:tokens )?(?:in|from) the (?:prompt|messages|input)|(\d+) (?:input|prompt) tokens"
    r"|(?:prompt|input) \((?:length )?(\d+)",
    re.IGNORECASE,
)


class TooLong(Exception):
    """A server refused a request for its length; the text is the server's."""


def is_too_long(error: Any) -> bool:
    """Whether an openai APIStatusError blames the length of a request, prompt and rest together."""
    if error.status_code == 413:
        return True
    return error.status_code in _STATUS and bool(_WORDS.search(words_of(error)))


def words_of(error: Any) -> str:
    """All that the server wrote."""
    return getattr(error.response, "text", "") or str(error)


def fewer_tokens(words: str, asked: int) -> int | None:
    """How many tokens to ask for after a refusal; None = the prompt itself is too long.

    What the server's numbers leave, else half. The numbers are believed only where they leave
    something: vLLM 0.15 gives the context less `max_tokens` as the context.

    Args:
        words: the server's.
        asked: `max_tokens` of the refused request.
    """
    if asked <= FEWEST:
        return None
    context, prompt = _CONTEXT.search(words), _PROMPT.search(words)
    if context and prompt and "at least" not in words:
        left = int(context[1]) - int(next(filter(None, prompt.groups())))
        if 0 < left < asked:
            return left
    return max(FEWEST, asked // 2)
