"""Scores as they come, kept until all are there: a killed run goes on where it was.

One line of JSON a scored side. Kept and not computed again, because two forward passes of large
models over all pairs take hours.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from prefkit.critical_tokens.writing import Task
from prefkit.errors import ConfigError
from prefkit.files.journal import Journal, read_lines


class WorkFile:
    """Scores by the index of their task, on disk.

    Args:
        path: the file; it is continued where it is there.
        identity: what the scores depend on, in one word.

    Raises:
        ConfigError: the file holds scores of other models, rows or options.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.found: dict[int, np.ndarray] = {}
        self._journal = Journal(path)
        lines = read_lines(path)
        first = next(lines, None)
        if first is None:
            self._journal.append([{"identity": identity}])
        elif first.get("identity") != identity:
            raise ConfigError(
                f"{path} holds scores of a run with other models, rows or options. Go on with "
                "those of that run, or remove the file."
            )
        for line in lines:
            self.found[line["task"]] = np.asarray(line["scores"], np.float32)

    def add(self, scores: dict[int, np.ndarray]) -> None:
        """Keeps the scores of a batch."""
        self.found |= scores
        self._journal.append(
            {"task": i, "scores": [float(str(s)) for s in v]} for i, v in scores.items()
        )


def identity_of(tasks: Iterable[Task], *parts: object) -> str:
    """A hash of the tasks' tokens and of everything else that decides the scores."""
    digest = hashlib.sha256(repr(parts).encode())
    for task in tasks:
        digest.update(f"{task.row}/{task.name}/{len(task.side.ids)}".encode())
        digest.update(task.side.ids.astype("<i4").tobytes())
        digest.update(task.side.scored.astype("u1").tobytes())
    return digest.hexdigest()
