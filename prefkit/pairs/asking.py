"""Generators that yield requests and are sent completions: what samples stands outside of them.

So a pipeline says what to do next and knows nothing of models, servers, batches, crashes or other
questions. Parts of it are generators too: `yield from` runs one, `together` several at once.
"""

from collections.abc import Generator, Sequence
from typing import TypeVar

from prefkit.pairs.engines.base import Completion, Request

T = TypeVar("T")
Asking = Generator[list[Request], list[Completion], T]


def together(parts: Sequence[Asking[T]]) -> Asking[list[T]]:
    """Runs several generators at once; their requests go out together.

    Returns:
        Their results, in order.
    """
    results: dict[int, T] = {}
    waiting: dict[int, list[Request]] = {}

    def advance(index: int, completions: list[Completion] | None) -> None:
        try:
            part = parts[index]
            waiting[index] = next(part) if completions is None else part.send(completions)
        except StopIteration as stop:
            results[index] = stop.value
            waiting.pop(index, None)

    for index in range(len(parts)):
        advance(index, None)
    while waiting:
        asked = dict(waiting)
        completions = iter((yield [request for requests in asked.values() for request in requests]))
        for index, requests in asked.items():
            advance(index, [next(completions) for _ in requests])
    return [results[index] for index in range(len(parts))]
