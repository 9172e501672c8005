"""Rows from wherever they lie: files, folders, `datasets` objects, lists, hub names.

A broken line does not hide the lines after it: it becomes a `RowError` at its index, so that the
caller can stop at the first one or skip and list them all. Nothing here looks inside a row.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from prefkit.data.sources.iterable import SOME, SOME_OF_ANY, refuse_stream
from prefkit.data.sources.json_rows import (
    RawRow,
    as_rows,
    from_json,
    looks_like_lines,
    parse_json,
    parse_lines,
)
from prefkit.data.sources.splits import first_rows, parts_of
from prefkit.errors import ConfigError, NoRowsError, PrefkitError, RowError

FILE_TYPES = (".json", ".jsonl", ".parquet", ".csv")
MOST = 100_000  # rows of a stream that is read whole


@dataclass(frozen=True)
class Rows:
    """The rows of one source, in order.

    Attributes:
        source: the name that messages use.
        items: one dict a row, or a `RowError` where a row could not be read.
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
            `Dataset.save_to_disk` or of files that `datasets` loads, a `datasets.Dataset` (or dict
            of splits), a list of dicts, a column-wise or prompt-keyed dict, or a dataset's name on
            the hub, followed by `:CONFIG` where it has several. Streams are refused.
        split: which split of a dataset with several, and which rows of it: `train[:1000]`.

    Returns:
        The rows; unreadable ones are `RowError` items, not raised yet.

    Raises:
        PrefkitError: the source as a whole is missing, empty, a stream, or of an unknown kind.
    """
    if isinstance(source, Rows):
        return source
    if isinstance(source, str | os.PathLike):
        rows = _load_named(os.fspath(source), split)
    elif isinstance(source, Mapping) and not hasattr(source, "with_format"):
        found = from_json(dict(source), "rows in memory")
        rows = Rows("rows in memory", found[: first_rows(split)])
    elif isinstance(source, list | tuple):
        rows = Rows("rows in memory", as_rows(source, "rows in memory")[: first_rows(split)])
    else:
        rows = _from_dataset(source, split, "dataset")
    if not rows.items:
        raise NoRowsError(f"{rows.source}: holds no rows. Give a source with at least one pair.")
    return rows


def load_stream(stream: Any, name: str) -> Rows:
    """All rows of a stream that has an end.

    Args:
        stream: an iterable without a length, such as a `datasets.IterableDataset`.
        name: what messages call it.

    Raises:
        ConfigError: more than `MOST` rows: it may have no end.
        NoRowsError: none.
    """
    streamed = hasattr(stream, "with_format")
    rows: Any = map(unfilled_row, stream.with_format(None)) if streamed else stream
    found = list(islice(rows, MOST + 1))
    if len(found) > MOST:
        some = SOME if streamed else SOME_OF_ANY
        raise ConfigError(
            f"The {name} rows are a stream of more than {MOST:,} rows, if it has an end at all, "
            f"and all of them would be held in memory. Give some of them: {some}."
        )
    if not found:
        raise NoRowsError(f"The {name} rows are a stream without any row. Give at least one pair.")
    return Rows(f"{name} stream", as_rows(found, f"{name} stream"))


def _load_named(name: str, split: str) -> Rows:
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, split)
    if path.is_file():
        return Rows(str(path), _load_file(path)[: first_rows(split)])
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
    if path.suffix == ".jsonl" or looks_like_lines(content):
        return parse_lines(content, str(path))
    return from_json(parse_json(content, path), str(path))


def _load_parquet(path: Path) -> list[RawRow | RowError]:
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow raises its own family, OSError among them
        raise PrefkitError(
            f"{path}: cannot be read as Parquet ({error}). Check that the file is complete."
        ) from error
    return as_rows(map(unfilled_row, table.to_pylist()), str(path))


def _load_folder(path: Path, split: str) -> Rows:
    import datasets

    try:
        return _from_dataset(datasets.load_from_disk(str(path)), split, str(path))
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, PrefkitError):
            raise
    name, most = parts_of(split)
    try:  # files, whose names say the split: train.jsonl, test.jsonl
        return _taken(datasets.load_dataset(str(path), split=name), most, str(path))
    except Exception as error:  # every kind of file has a loader with errors of its own
        raise PrefkitError(
            f"{path}: is a folder, but neither one written by Dataset.save_to_disk nor one of "
            f"files with split '{split}' ({type(error).__name__}: {error}). Give a single file "
            f"({', '.join(FILE_TYPES)}) or such a folder."
        ) from error


def _load_hub(name: str, split: str) -> Rows:
    import datasets

    path, _, config = name.partition(":")
    whole, most = parts_of(split)
    try:
        dataset = datasets.load_dataset(path, config or None, split=whole)
    except Exception as error:  # the hub client raises many kinds: all mean "not available"
        raise PrefkitError(
            f"{name}: is no file here, and could not be loaded as a hub dataset with split "
            f"'{split}' ({type(error).__name__}: {error}). Check the name, the split and the "
            "connection, or give a path."
        ) from error
    return _taken(dataset, most, name)


def _from_dataset(dataset: Any, split: str, source: str) -> Rows:
    """The rows of a dataset, or of one of its splits."""
    most = first_rows(split)
    name, _ = parts_of(split)
    if isinstance(dataset, Mapping):
        if name not in dataset:
            names = ", ".join(map(str, dataset))
            raise PrefkitError(f"{source}: has no split '{name}'. Choose one of: {names}.")
        dataset = dataset[name]
    return _taken(dataset, most, source)


def _taken(dataset: Any, most: int | None, source: str) -> Rows:
    """The rows of a dataset without splits, or the first of them."""
    refuse_stream(dataset, source)
    if isinstance(dataset, str | bytes) or not hasattr(dataset, "__iter__"):
        raise PrefkitError(
            f"{source}: rows cannot be read from a {type(dataset).__name__}. Give a path, a "
            "datasets.Dataset, a list of dicts or a hub name."
        )
    if hasattr(dataset, "with_format"):
        dataset = dataset.with_format(None)  # plain Python values whatever format was set
        dataset = map(unfilled_row, itertools.islice(dataset, most))
    return Rows(source, as_rows(itertools.islice(dataset, most), source))


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
