"""Scores as they come, kept until all are there: a killed run goes on where it was.

One line of JSON a scored side, appended and never rewritten. The last line of a killed run may be
torn: it is dropped, and its side scored again. Kept and not computed again, because two forward
passes of large models over all pairs take hours.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.errors import ConfigError
from prefkit.score.writing import Task


class WorkFile:
    """Scores by the place of their task, on disk.

    Args:
        path: the file; it is continued where it is there.
        identity: what the scores depend on, in one word.

    Raises:
        ConfigError: the file holds scores of other models, rows or options.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.found: dict[int, np.ndarray] = {}
        lines = self._sound_lines()
        if lines:
            if lines[0].get("identity") != identity:
                raise ConfigError(
                    f"{path} holds scores of a run with other models, rows or options. Go on with "
                    "those of that run, or remove the file."
                )
            for line in lines[1:]:
                self.found[line["task"]] = np.asarray(line["scores"], np.float32)
        if not lines:
            self._append([{"identity": identity}])

    def _sound_lines(self) -> list[dict[str, Any]]:
        """The whole lines; what follows the last line break is cut off the file."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        return [json.loads(line) for line in content[:whole].splitlines()]

    def _append(self, lines: Iterable[dict[str, Any]]) -> None:
        # Closed each time: then it is with the system, which a kill of this process cannot touch.
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def add(self, scores: dict[int, np.ndarray]) -> None:
        """Keeps the scores of a batch."""
        self.found |= scores
        self._append({"task": i, "scores": [float(str(s)) for s in v]} for i, v in scores.items())


def identity_of(tasks: Iterable[Task], *parts: object) -> str:
    """A hash of the tasks' tokens and of everything else that decides the scores."""
    digest = hashlib.sha256(repr(parts).encode())
    for task in tasks:
        digest.update(f"{task.row}/{task.name}/{len(task.side.ids)}".encode())
        digest.update(task.side.ids.astype("<i4").tobytes())
        digest.update(task.side.scored.astype("u1").tobytes())
    return digest.hexdigest()
