"""What has been done, one JSON line a task: an interrupted run goes on where it stopped."""

import json
from datetime import date
from pathlib import Path
from typing import Any

from prefkit.files import journal as lines


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
        self._file = lines.Journal(path)
        kept = list(lines.read_lines(path))
        terms = json.loads(json.dumps(terms))  # tuples as lists, as they come back from the file
        if kept and kept[0] != {"terms": terms}:
            raise ValueError(f"{path} is from a run with other terms: move it, or use --fresh.")
        self.begun = kept[1] if len(kept) > 1 else _begun()
        self._file.append([{"terms": terms}, self.begun][len(kept) :])
        for record in kept[2:]:
            self.records[record["key"]] = record

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.records[key]

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a record, which has a "key" of its own, at once and for good."""
        self._file.append([record])
        self.records[record["key"]] = record


def _begun() -> dict[str, Any]:
    from benchmarks import machine

    return {"date": str(date.today()), "commit": machine.commit()}
