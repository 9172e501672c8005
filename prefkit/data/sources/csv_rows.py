"""Rows of a CSV file: texts as they are, everything else as JSON.

In a table of texts, a list cannot be distinguished from a text that looks like one. So only fields
that hold objects by their nature are read as JSON, and conversations where they are one, or a list
of them. An empty cell of these is none; of a text it is the empty text, so that an empty `prefix`
is still a step's.
"""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

from prefkit.data.pair import is_conversational
from prefkit.errors import NoRowsError, PrefkitError, RowError

# Fields that are never plain text; an empty cell means that the row has none.
_OBJECTS = (
    *("chosen_weights", "rejected_weights", "chosen_spans", "rejected_spans", "append_eos"),
    *("tools", "chat_template_kwargs", "responses", "pairs", "prob_result", "history"),
)
_REMEDY = "Write the cell as JSON, or the rows as .jsonl or .parquet."


def read_csv(path: Path) -> list[dict[str, Any] | RowError]:
    """The rows below the line of names.

    Raises:
        PrefkitError: the file cannot be read, or its first line is no line of names.
        NoRowsError: it is empty.
    """
    csv.field_size_limit(sys.maxsize)  # a solution may be longer than the default 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, None)
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PrefkitError(f"{path}: cannot be read as CSV in UTF-8 ({error}).") from error
    if not names:
        raise NoRowsError(f"{path}: the file is empty. Give a file with at least one pair.")
    if len(names) == 1 and (other := next((c for c in ";\t|" if c in names[0]), None)):
        raise PrefkitError(
            f"{path}: its columns are separated by {other!r}, not by commas. Write commas, or the "
            "rows as .jsonl or .parquet."
        )
    if len(set(names)) != len(names) or not all(names):
        problem = f"{path}: its first line must name every column once; it is {names}."
        if not names[0]:
            problem += " A first column without a name is an index: pandas' to_csv(index=False)."
        raise PrefkitError(problem)
    return [_row(str(path), i, names, cells) for i, cells in enumerate(filter(None, lines))]


def _row(source: str, index: int, names: list[str], cells: list[str]) -> dict[str, Any] | RowError:
    if len(cells) != len(names):
        problem = f"has {len(cells)} cells, the first line {len(names)} names"
        return RowError(source, index, "", problem, "Put texts with commas or breaks in quotes.")
    row = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            row[name] = _value(name, cell)
        except ValueError as error:
            return RowError(source, index, name, f"is no JSON ({error})", _REMEDY)
    return row


def _value(name: str, cell: str) -> Any:
    """A cell's value.

    Raises:
        ValueError: it is an object, but not in JSON.
    """
    if name in _OBJECTS:
        if cell in ("True", "False"):  # as Python writes them
            return cell == "True"
        return None if not cell.strip() else cell if cell == "auto" else json.loads(cell)
    if not re.match(r"\s*(?:\[\s*){0,2}\{", cell):
        return cell
    try:
        found = json.loads(cell)
    except ValueError:
        if re.match(r"\s*(?:\[\s*){0,2}\{\s*'(?:role|content|from|value)'", cell):
            raise  # a conversation as Python prints it
        return cell
    several = isinstance(found, list) and all(map(is_conversational, found))
    return found if several or is_conversational(found) else cell
