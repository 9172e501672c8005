"""Rows from wherever they lie: files, folders, `datasets` objects, lists, hub names.

A broken line does not hide the lines after it: it becomes a `RowError` in its place, so that the
caller can stop at the first one or skip and list them all. Nothing here looks inside a row.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.data.pair import is_conversational
from prefkit.data.sources.iterable import refuse_stream
from prefkit.errors import NoRowsError, PrefkitError, RowError

RawRow = dict[str, Any]
FILE_TYPES = (".json", ".jsonl", ".parquet", ".csv")


@dataclass(frozen=True)
class Rows:
    """The rows of one source, in order.

    Attributes:
        source: the name that messages use.
        items: one dict a row, or the `RowError` that stands where a row could not be read.
    """

    source: str
    items: list[RawRow | RowError]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[RawRow | RowError]:
        return iter(self.items)


def load_rows(source: Any, *, split: str = "train") -> Rows:
    """Load the rows of one source.

    Args:
        source: a path to a .json, .jsonl, .parquet or .csv file, a folder written by
            `Dataset.save_to_disk`, a `datasets.Dataset` (or dict of splits), a list of dicts, a
            column-wise or prompt-keyed dict, or a dataset's name on the hub. Streams are refused.
        split: which split of a dataset with several.

    Returns:
        The rows; unreadable ones are `RowError` items, raised by nobody yet.

    Raises:
        PrefkitError: the source as a whole is missing, empty, a stream, or of an unknown kind.
    """
    if isinstance(source, Rows):
        return source
    if isinstance(source, str | os.PathLike):
        rows = _load_named(os.fspath(source), split)
    elif isinstance(source, Mapping) and not hasattr(source, "with_format"):
        rows = Rows("rows in memory", _from_json(dict(source), "rows in memory"))
    elif isinstance(source, list | tuple):
        rows = Rows("rows in memory", _as_rows(source, "rows in memory"))
    else:
        rows = _from_dataset(source, split, "dataset")
    if not rows.items:
        raise NoRowsError(f"{rows.source}: holds no rows. Give a source with at least one pair.")
    return rows


def _load_named(name: str, split: str) -> Rows:
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, split)
    if path.is_file():
        return Rows(str(path), _load_file(path))
    if path.suffix in FILE_TYPES or path.is_absolute() or name.startswith("."):
        raise PrefkitError(f"{name}: no such file. Check the path (it is read from {Path.cwd()}).")
    return _load_hub(name, split)


def _load_file(path: Path) -> list[RawRow | RowError]:
    if path.suffix not in FILE_TYPES:
        known = ", ".join(FILE_TYPES)
        raise PrefkitError(
            f"{path}: unknown file type '{path.suffix}'. Write it as one of {known}."
        )
    if path.suffix == ".parquet":
        return _load_parquet(path)
    if path.suffix == ".csv":
        from prefkit.data.sources.csv_rows import read_csv

        return read_csv(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PrefkitError(f"{path}: cannot be read ({error}). Check its permissions.") from error
    if not content.strip():
        raise NoRowsError(f"{path}: the file is empty. Give a file with at least one pair.")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if path.suffix == ".jsonl" or _looks_like_lines(content):
        return _parse_lines(content, str(path))
    return _from_json(_parse_json(content, path), str(path))


def _looks_like_lines(content: bytes) -> bool:
    """Whether a .json file is really JSON Lines: its first line is an object of its own."""
    first, _, rest = content.strip().partition(b"\n")
    if not rest.strip() or not first.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _parse_lines(content: bytes, source: str) -> list[RawRow | RowError]:
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


def _parse_json(content: bytes, path: Path) -> Any:
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


def _from_json(value: Any, source: str) -> list[RawRow | RowError]:
    """Rows of a whole JSON value: a list, columns (cDPO's files), or prompt-keyed (TDPO's)."""
    if isinstance(value, list):
        return _as_rows(value, source)
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


def _as_rows(values: Iterable[Any], source: str) -> list[RawRow | RowError]:
    rows: list[RawRow | RowError] = []
    for index, value in enumerate(values):
        if isinstance(value, Mapping):
            rows.append(dict(value))
        else:
            problem = f"is a {type(value).__name__}, not an object with fields"
            remedy = "Give one object with prompt, chosen and rejected a row."
            rows.append(RowError(source, index, "", problem, remedy))
    return rows


def _load_parquet(path: Path) -> list[RawRow | RowError]:
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow raises its own family, OSError among them
        raise PrefkitError(
            f"{path}: cannot be read as Parquet ({error}). Check that the file is complete."
        ) from error
    return _as_rows(map(unfilled_row, table.to_pylist()), str(path))


def _load_folder(path: Path, split: str) -> Rows:
    import datasets

    try:
        return _from_dataset(datasets.load_from_disk(str(path)), split, str(path))
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, PrefkitError):
            raise
        raise PrefkitError(
            f"{path}: is a folder, but not one written by Dataset.save_to_disk ({error}). "
            f"Give a single file ({', '.join(FILE_TYPES)}) or such a folder."
        ) from error


def _load_hub(name: str, split: str) -> Rows:
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub client raises many kinds: all mean "not available"
        raise PrefkitError(
            f"{name}: is no file here, and could not be loaded as a hub dataset with split "
            f"'{split}' ({type(error).__name__}: {error}). Check the name, the split and the "
            "connection, or give a path."
        ) from error
    return _from_dataset(dataset, split, name)


def _from_dataset(dataset: Any, split: str, source: str) -> Rows:
    if isinstance(dataset, Mapping):
        if split not in dataset:
            names = ", ".join(map(str, dataset))
            raise PrefkitError(f"{source}: has no split '{split}'. Choose one of: {names}.")
        dataset = dataset[split]
    refuse_stream(dataset, source)
    if isinstance(dataset, str | bytes) or not hasattr(dataset, "__iter__"):
        raise PrefkitError(
            f"{source}: rows cannot be read from a {type(dataset).__name__}. Give a path, a "
            "datasets.Dataset, a list of dicts or a hub name."
        )
    if hasattr(dataset, "with_format"):
        dataset = dataset.with_format(None)  # plain Python values whatever format was set
        return Rows(source, _as_rows(map(unfilled_row, dataset), source))
    return Rows(source, _as_rows(dataset, source))


def unfilled_row(row: Any) -> Any:
    """A row of an Arrow table without the fields that Arrow added to objects within it.

    All objects of a column get the same fields there, null where an object has none of the name:
    the arguments of one tool's calls would turn up in every other's. So a null that was meant is
    lost there, too; a JSON file keeps it.
    """
    return {name: _unfilled(value) for name, value in row.items()}


def _unfilled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _unfilled(one) for name, one in value.items() if one is not None}
    return [_unfilled(one) for one in value] if isinstance(value, list) else value
