"""A question's way to its pairs, as a generator: it yields requests and is sent completions.

So a pipeline says what to do next and knows nothing of models, servers, batches, crashes or other
questions. Parts of it are generators too: `yield from` runs one, `together` several side by side.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prefkit.pairs.engines.base import Completion, Request

T = TypeVar("T")
Asking = Generator[list[Request], list[Completion], T]


@dataclass
class Outcome:
    """What became of one question.

    Attributes:
        question: its id.
        rows: the pairs, in the schema of docs/build.md.
        counts: what was made at each stage ("solutions right": 3).
        drops: what was left out, by "stage: reason".
        extra: rows for later stages by name (cdpo: "positive", "negative").
    """

    question: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    extra: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As a line of the journal of questions."""
        return {
            "id": self.question,
            "rows": self.rows,
            "counts": dict(self.counts),
            "drops": dict(self.drops),
            "extra": self.extra,
        }


def together(parts: Sequence[Asking[T]]) -> Asking[list[T]]:
    """Runs several generators side by side; their requests go out together.

    Returns:
        Their results, in order.
    """
    results: dict[int, T] = {}
    waiting: dict[int, list[Request]] = {}

    def advance(place: int, completions: list[Completion] | None) -> None:
        try:
            part = parts[place]
            waiting[place] = next(part) if completions is None else part.send(completions)
        except StopIteration as stop:
            results[place] = stop.value
            waiting.pop(place, None)

    for place in range(len(parts)):
        advance(place, None)
    while waiting:
        asked = dict(waiting)
        completions = iter((yield [request for requests in asked.values() for request in requests]))
        for place, requests in asked.items():
            advance(place, [next(completions) for _ in requests])
    return [results[place] for place in range(len(parts))]
