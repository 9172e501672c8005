"""What a pipeline makes of a question: graded solutions, and an outcome at its end."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prefkit.pairs.localise.verdict import Verdict
from prefkit.pairs.questions import Question

# Kinds of kept verdicts: the first wrong step of a wrong solution, and a right answer left out.
LOCALISED, REMOVED = "localised", "removed"
VERDICTS = "verdicts"  # their key in `Outcome.extra`


@dataclass(frozen=True)
class Attempt:
    """A sampled and graded solution of a question.

    Attributes:
        number: of the sample; "0.3" = continuation 3 from before the first wrong step of 0.
        text: the whole solution, the opening included.
        steps: their joined texts are `text`.
        right: whether its final answer is the question's.
        answer: that answer as it was read, or None.
        ended: the model ended it; False = it ran into max_tokens.
        decided: right or wrong was found out. False = no answer was found, it could not be
            compared, or it is right so far and the solution goes on: the solution may be neither
            the chosen nor the rejected one of a pair.
    """

    number: int | str
    text: str
    steps: tuple[str, ...]
    right: bool
    answer: str | None
    ended: bool
    decided: bool


@dataclass
class Outcome:
    """What became of one question.

    Attributes:
        question: its id.
        rows: the pairs, in the schema of docs/build.md.
        counts: what was made at each stage ("solutions right": 3).
        drops: what was left out, by "stage: reason".
        extra: rows for later stages by name (cdpo: "positive", "negative"), and kept verdicts.
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


def keep(
    outcome: Outcome,
    kind: str,
    question: Question,
    steps: Sequence[str],
    found: Verdict,
    by: str,
) -> None:
    """Adds a verdict that blames a step to a question's outcome, each text once.

    Args:
        kind: `LOCALISED` or `REMOVED`.
        steps: of the solution.
        found: its `step` is not None.
        by: who judged, and why they were asked.
    """
    record = {
        "kind": kind,
        "question": question.text,
        "answer": question.answer,
        "steps": list(steps),
        "step": found.step,
        "reason": found.reason,
        "by": by,
    }
    kept = outcome.extra.setdefault(VERDICTS, [])
    if record not in kept:  # the same text may be sampled often
        kept.append(record)
