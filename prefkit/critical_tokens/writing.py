"""Scores → fields of a row, in prefkit's own form or in that of cDPO's released code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefkit.data.pair import TokenizedSide
from prefkit.data.sources.files import RawRow

RELEASED = {"chosen": "pos", "rejected": "neg"}


@dataclass(frozen=True)
class Task:
    """One response of a row to score.

    Attributes:
        row: index of its row among the usable ones.
        name: "chosen" or "rejected".
        side: ids without an appended end token; `scored` marks the tokens that get a score. An end
            token that the text itself holds gets none, so its weight is 1 like an appended one's.
        in_response: (n,) bool, tokens that hold a character of the response.
        text: the response.
    """

    row: int
    name: str
    side: TokenizedSide
    in_response: np.ndarray
    text: str

    def spread(self, scores: np.ndarray) -> np.ndarray:
        """(n,) float32: the scores of the scored tokens at their positions, 0 elsewhere."""
        everywhere = np.zeros(len(self.side.ids), np.float32)
        everywhere[self.side.scored] = scores
        return everywhere


def with_scores(
    row: RawRow, tasks: Sequence[Task], scores: Sequence[np.ndarray], form: str
) -> RawRow:
    """The row with the scores of its responses.

    Args:
        row: as it was read.
        tasks, scores: its responses, and s_t of the scored tokens of each.
        form: "weights" or "prob_result".
    """
    found = {task.name: (task, task.spread(s)) for task, s in zip(tasks, scores, strict=True)}
    if form == "prob_result":
        result = {RELEASED[name]: _released(*side) for name, side in found.items()}
        return {**row, "prob_result": result}
    task, s = found["rejected"]
    fields: dict[str, Any] = {
        "rejected_weights": {"ids": _ids(task), "weights": _short(1.0 - s[task.in_response])}
    }
    if "chosen" in found:
        task, s = found["chosen"]
        fields["chosen_scores"] = {"ids": _ids(task), "scores": _short(s[task.in_response])}
    return {**row, **fields}


def as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The fields that every row has, each as a list: the shape of cDPO's released files."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: [row[name] for row in rows] for name in names}


def _released(task: Task, scores: np.ndarray) -> dict[str, Any]:
    """s_t of every token but the first of prompt + response, and where the response begins."""
    begin = len(scores) - 1 - int(task.in_response.sum())
    return {"ce_prob": _short(scores[1:]), "response_start_idx": begin, "text": task.text}


def _ids(task: Task) -> list[int]:
    return task.side.ids[task.in_response].tolist()


def _short(values: np.ndarray) -> list[float]:
    """float32 values as the shortest decimals that read back as the same float32."""
    return [float(str(value)) for value in values.astype(np.float32)]
