"""What a run has found: one JSON file, and the page that is made from it, both replaced at once.

The card named on the page is the one that torch and nvidia-smi named in that very run; a rehearsal
says in its first line that it is none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.runner import FAILED, OK, Outcome
from prefkit.files.atomic import write_text

REHEARSAL = "Rehearsal on a CPU: not measured on a GPU"
_SAME = ("hardware", "commit", "source")  # a table of two of these would be a mixture


@dataclass
class Record:
    """The outcomes of a run, kept in `path` as they come in; the page lies beside it.

    Attributes:
        facts: of the machine and of the source.
        outcomes: by step, in the order of the table.
    """

    path: Path
    facts: dict[str, str]
    rehearsal: bool
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def page(self) -> Path:
        return self.path.with_suffix(".md")

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    @property
    def failed(self) -> list[str]:
        """Steps that did not do what they should; being left out for time is none of it."""
        kinds = (OK, "left out")
        return [name for name, outcome in self.outcomes.items() if outcome.status not in kinds]

    def add(self, outcome: Outcome) -> None:
        """Takes an outcome in; it is on disk when this returns."""
        self.outcomes[outcome.name] = outcome
        self.write()

    def write(self) -> None:
        content = {
            "rehearsal": self.rehearsal,
            "machine": self.facts,
            "steps": [outcome.as_dict() for outcome in self.outcomes.values()],
        }
        write_text(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        write_text(self.page, self.markdown())

    @classmethod
    def resumed(cls, path: Path, facts: Mapping[str, str], rehearsal: bool) -> "Record":
        """What an earlier run left, to be gone on with.

        Raises:
            ValueError: it is no such file, or of another machine, commit or source.
        """
        try:
            kept = json.loads(path.read_text("utf-8"))
            outcomes = [Outcome(**fields) for fields in kept["steps"]]
            before, was_rehearsal = dict(kept["machine"]), bool(kept["rehearsal"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the .json of an earlier run ({error!r})") from error
        if was_rehearsal != rehearsal:
            raise ValueError(f"{path} is of {'a rehearsal' if was_rehearsal else 'a run on a GPU'}")
        for name in _SAME:
            if before.get(name) != facts.get(name):
                raise ValueError(
                    f"{path} is of {name} {before.get(name)!r}, this run of {facts.get(name)!r}: "
                    "start a new one"
                )
        return cls(path, dict(facts), rehearsal, {one.name: one for one in outcomes})

    def markdown(self) -> str:
        """The whole page."""
        parts = [f"# {REHEARSAL if self.rehearsal else self.path.stem}", self._facts()]
        head = ["step", "outcome", "seconds", "limit", "what it asks"]
        lines = [
            [one.name, _outcome(one), f"{one.seconds:.1f}", f"{one.limit:.0f}", one.title]
            for one in self.outcomes.values()
        ]
        parts.append(_table(head, lines))
        for one in self.outcomes.values():
            if one.rows or one.tail:
                parts.append(self._section(one))
        return "\n\n".join(part.strip() for part in parts) + "\n"

    def _facts(self) -> str:
        named = [f"{name} {value}" for name, value in self.facts.items() if name != "hardware"]
        return f"{self.facts.get('hardware', 'unknown hardware')}; {', '.join(named)}."

    def _section(self, outcome: Outcome) -> str:
        mark = " (rehearsal: numbers of a CPU at sizes of no meaning)" if self.rehearsal else ""
        parts = [f"## {outcome.title}{mark}", *pieces(outcome.rows)]
        if outcome.tail:
            text = "\n".join(outcome.tail).replace("```", "'''")
            parts.append(f"Last lines of its output:\n\n```text\n{text}\n```")
        return "\n\n".join(parts)


def pieces(rows: list[dict[str, Any]]) -> list[str]:
    """Checks, tables and finished pieces, each where its first line stood."""
    found: dict[str, list[dict[str, Any]]] = {}
    for number, told in enumerate(rows):
        if "markdown" in told:
            found[f"markdown {number}"] = [told]
        elif "check" in told:
            found.setdefault("checks", []).append(told)
        elif "row" in told:
            found.setdefault(f"row {told['row']}", []).append(told)
    parts = []
    for kind, lines in found.items():
        if kind == "checks":
            parts.append(_checks(lines))
        elif "markdown" in lines[0]:
            parts.append(str(lines[0]["markdown"]))
        else:
            parts.append(f"**{lines[0]['row']}**\n\n{_rows(lines)}")
    return parts


def _checks(lines: list[dict[str, Any]]) -> str:
    """Counts, and every check that is not simply right."""
    kinds = {True: "right", False: "wrong", None: "skipped"}
    counts = [f"{sum(one['ok'] is ok for one in lines)} {word}" for ok, word in kinds.items()]
    said = [f"{len(lines)} checks: {', '.join(counts)}."]
    for one in lines:
        if one["ok"] is not True:
            rest = {k: v for k, v in one.items() if k not in ("check", "ok", "seconds", "why")}
            why = " ".join([str(one.get("why", "")), json.dumps(rest) if rest else ""]).strip()
            said.append(f"- {kinds[one['ok']]}: {one['check']}: {why}")
    return "\n".join([said[0], "", *said[1:]]).strip()


def _rows(lines: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for one in lines for name in one if name != "row"))
    return _table(names, [[_cell(one.get(name)) for name in names] for one in lines])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _outcome(outcome: Outcome) -> str:
    word = outcome.status.upper() if outcome.status == FAILED else outcome.status
    return f"{word}: {outcome.why}" if outcome.why else word


def _table(header: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])
