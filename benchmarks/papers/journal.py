"""What has been done, one JSON line a task: an interrupted run goes on where it stopped."""

import json
import os
from datetime import date
from pathlib import Path
from typing import Any


class Journal:
    """An append-only file of records; the last line, torn by a kill, is dropped and done again.

    Args:
        path: the file.
        terms: what the run's figures depend on. A journal kept under other terms is refused.

    Attributes:
        begun: {"date", "commit"} of the run's beginning.
        records: by key.

    Raises:
        ValueError: the journal belongs to other terms.
    """

    def __init__(self, path: Path, terms: dict[str, Any]) -> None:
        self.path, self.records = path, dict[str, dict[str, Any]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path)
        terms = json.loads(json.dumps(terms))  # tuples as lists, as they come back from the file
        if lines and lines[0] != {"terms": terms}:
            raise ValueError(f"{path} is from a run with other terms: move it, or use --fresh.")
        self.begun = lines[1] if len(lines) > 1 else _begun()
        if len(lines) < 2:
            path.unlink(missing_ok=True)
            self._append({"terms": terms})
            self._append(self.begun)
        for record in lines[2:]:
            self.records[record["key"]] = record

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.records[key]

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a record, which has a "key" of its own, at once and for good."""
        self._append(record)
        self.records[record["key"]] = record

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _begun() -> dict[str, Any]:
    from benchmarks import machine

    return {"date": str(date.today()), "commit": machine.commit()}


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, cut back to its last whole line."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]
