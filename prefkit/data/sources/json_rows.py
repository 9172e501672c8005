"""Rows of JSON: lines, a list of objects, a list under each field, or objects by prompt."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefkit.data.pair import is_conversational
from prefkit.errors import PrefkitError, RowError

RawRow = dict[str, Any]


def looks_like_lines(content: bytes) -> bool:
    """Whether a .json file is really JSON Lines: its first line is an object of its own."""
    first, _, rest = content.strip().partition(b"\n")
    if not rest.strip() or not first.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def parse_lines(content: bytes, source: str) -> list[RawRow | RowError]:
    """The rows of JSON Lines; a broken line becomes its `RowError`."""
    rows: list[RawRow | RowError] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            rows.append(_parse_line(line, number, len(rows), source))
    return rows


def _parse_line(line: bytes, number: int, row: int, source: str) -> RawRow | RowError:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        problem = f"line {number} is not valid UTF-8 (byte {error.start}: {error.reason})"
        return RowError(source, row, "", problem, "Save the file as UTF-8 or remove the line.")
    except (ValueError, RecursionError) as error:
        problem = f"line {number} is not valid JSON ({error})"
        return RowError(source, row, "", problem, "Repair or remove the line.")
    if not isinstance(value, dict):
        problem = f"line {number} is a {type(value).__name__}, not an object"
        return RowError(source, row, "", problem, "Write one JSON object a line.")
    return value


def parse_json(content: bytes, path: Path) -> Any:
    """A whole JSON file.

    Raises:
        PrefkitError: it is no valid JSON; names line and column.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PrefkitError(
            f"{path}: line {line} is not valid UTF-8 (byte {error.start}: {error.reason}). "
            "Save the file as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise PrefkitError(
            f"{path}: line {error.lineno}, column {error.colno} is not valid JSON ({error.msg}). "
            "Repair the file, or name it .jsonl if it holds one object a line."
        ) from error
    except RecursionError as error:
        raise PrefkitError(f"{path}: nested too deeply to be rows. Check the file.") from error


def from_json(value: Any, source: str) -> list[RawRow | RowError]:
    """Rows of a whole JSON value: a list, columns (cDPO's files), or prompt-keyed (TDPO's)."""
    if isinstance(value, list):
        return as_rows(value, source)
    if not isinstance(value, dict) or not value:
        raise PrefkitError(
            f"{source}: is {'empty' if value == {} else f'a bare {type(value).__name__}'}. "
            "Write a list of objects, or one object with a list under each field."
        )
    if _is_columns(value):
        return _from_columns(value, source)
    if all(isinstance(entry, dict) and "pairs" in entry for entry in value.values()):
        return [{"prompt": prompt, **entry} for prompt, entry in value.items()]
    return [value]


def _is_columns(value: RawRow) -> bool:
    """A list under each side; one conversational row has that too, but lists of messages."""
    sides = [value.get("chosen"), value.get("rejected")]
    return all(isinstance(side, list) for side in sides) and not any(map(is_conversational, sides))


def _from_columns(value: RawRow, source: str) -> list[RawRow | RowError]:
    columns = {name: column for name, column in value.items() if isinstance(column, list)}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shortest = min(lengths, key=lambda name: lengths[name])
        raise RowError(
            source,
            lengths[shortest],
            shortest,
            f"the columns have different lengths: {lengths}",
            "Write one entry a row under every field.",
        )
    return [dict(zip(columns, entry, strict=True)) for entry in zip(*columns.values(), strict=True)]


def as_rows(values: Iterable[Any], source: str) -> list[RawRow | RowError]:
    """Each value as a row; one that is no object becomes its `RowError`."""
    rows: list[RawRow | RowError] = []
    for index, value in enumerate(values):
        if isinstance(value, Mapping):
            rows.append(dict(value))
        else:
            problem = f"is a {type(value).__name__}, not an object with fields"
            remedy = "Give one object with prompt, chosen and rejected a row."
            rows.append(RowError(source, index, "", problem, remedy))
    return rows
