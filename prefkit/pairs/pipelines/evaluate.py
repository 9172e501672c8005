"""`prefkit evaluate`: how many questions a model solves, by the engines and the grader of a build.

Greedy, one solution a question, unless told otherwise. The share of right answers comes with its
95 % interval (Wilson), so that nobody takes noise for progress.
"""

import math
from collections.abc import Sequence
from typing import Any

from prefkit.pairs.asking import Asking
from prefkit.pairs.pipelines.attempts import solve
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.outcome import Outcome
from prefkit.pairs.questions import Question


def evaluate(question: Question, context: Context) -> Asking[Outcome]:
    """Samples and grades.

    Returns:
        An outcome of one row a solution: what was written, how its answer was read, whether that
        is right, and whether that could be found out.
    """
    outcome = Outcome(question.id)
    assert context.options.samples is not None
    attempts = yield from solve(question, context, outcome, range(context.options.samples))
    outcome.rows = [
        {
            "id": f"{question.id}-{attempt.number}",
            "prompt": question.prompt_field,
            "answer": question.answer,
            "solution": attempt.text,
            "read_as": attempt.answer,
            "right": attempt.right,
            "decided": attempt.decided,
            "ended": attempt.ended,
        }
        for attempt in attempts
    ]
    return outcome


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy over all solutions, in [0, 1], its interval, the shares of solutions that are wrong
    and undecided (neither right nor wrong), and the share of questions solved.

    The interval takes questions as independent; several samples of one question are not, so it is
    that of as many solutions as there are questions.
    """
    questions: dict[str, list[bool]] = {}
    for row in rows:
        questions.setdefault(row["id"].rpartition("-")[0], []).append(row["right"])
    accuracy = sum(row["right"] for row in rows) / len(rows)
    return {
        "accuracy": accuracy,
        "interval": wilson(accuracy, len(questions)),
        "wrong": sum(row["decided"] and not row["right"] for row in rows) / len(rows),
        "undecided": sum(not row["decided"] for row in rows) / len(rows),
        "solved": sum(any(found) for found in questions.values()) / len(questions),
    }


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent trials (Wilson 1927)."""
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
