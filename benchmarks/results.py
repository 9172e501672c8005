"""What a run leaves: raw numbers as JSON, tables as Markdown, a picture."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from benchmarks import machine
from benchmarks.measure import Record
from benchmarks.plot import plot
from benchmarks.questions import load
from benchmarks.table import question_table, share_of_products

LEFT_OUT = "not run"  # how the note of a group begins for which no time was left
FOLDER = Path(__file__).parent / "results"
_HOW = (
    "A step is forward + backward from ready hidden states. Ways take turns round by round; "
    "median, least and most of the rounds. Memory: the peak that a step adds to its inputs, with "
    "the gradient of the head (dW) and without. Errors: largest error over largest value, against "
    "fp64 of the same rounded inputs, on fewer tokens of the same case. Ratios above 1: slower or "
    "larger than prefkit, or than the matrix products of its own passes alone."
)


@dataclass
class Results:
    """Records and the machine they are from, kept in one JSON file as they come in.

    Attributes:
        path: the JSON file; the table and the picture have its name with .md and .png.
    """

    path: Path
    facts: dict[str, str]
    size: str
    records: list[Record] = field(default_factory=list)

    @classmethod
    def new(cls, device: str, size: str, suffix: str = "", folder: Path = FOLDER) -> "Results":
        name = f"{date.today()}-{machine.slug(device)}{suffix}"
        path, again = folder / f"{name}.json", 1
        while path.exists():  # an earlier run of the day stays as it is
            again += 1
            path = folder / f"{name}-{again}.json"
        return cls(path, machine.facts(device), size)

    @classmethod
    def of(cls, path: Path) -> "Results":
        """From a JSON file, to be gone on with or shown; without what was left out for time."""
        kept = json.loads(path.read_text())
        records = [Record.from_dict(fields) for fields in kept["records"]]
        records = [record for record in records if not record.note.startswith(LEFT_OUT)]
        return cls(path, kept["machine"], kept["size"], records)

    def has(self, question: str, group: int) -> bool:
        """Whether the group was measured."""
        return any(r.question == question and r.group == group for r in self.records)

    def add(self, records: Iterable[Record]) -> None:
        """Takes records in and writes all of them."""
        self.records += records
        kept = [record.as_dict() for record in self.records]
        content = {"machine": self.facts, "size": self.size, "records": kept}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def write(self) -> list[Path]:
        """The table and, where its records are there, the picture."""
        written = [self.path]
        picture = self.path.with_suffix(".png")
        caption = "; ".join(f"{name}: {value}" for name, value in self.facts.items())
        if plot(self.records, picture, caption):
            written.append(picture)
        table = self.path.with_suffix(".md")
        table.write_text(self.markdown(picture.name if picture in written else None))
        return [table, *written]

    def markdown(self, picture: str | None = None) -> str:
        """The whole page."""
        parts = [f"# {self.path.stem}, {self.size}", _facts(self.facts), _HOW]
        for name in dict.fromkeys(record.question for record in self.records):
            of_question = [record for record in self.records if record.question == name]
            parts.append(question_table(load(name), of_question))
        shares = _shares(self.records)
        if shares:
            parts.append("## Share of the matrix products in prefkit's time\n\n" + shares)
        if picture:
            parts.append(f"![memory and time against the number of tokens]({picture})")
        return "\n\n".join(part.strip() for part in parts) + "\n"


def _facts(facts: dict[str, str]) -> str:
    words = [f"{name} {value}" for name, value in facts.items() if name != "hardware"]
    measured = "" if "CUDA" in facts else " Not measured on a GPU."
    return f"{facts['hardware']}; {', '.join(words)}.{measured}"


def _shares(records: list[Record]) -> str:
    cases: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        cases.setdefault((record.question, record.group, record.case.title), []).append(record)
    lines = []
    for (_, _, title), of_case in cases.items():
        share = share_of_products(of_case)
        if share is not None:
            lines.append(f"- {share:.0%}: {title}")
    return "\n".join(lines)
