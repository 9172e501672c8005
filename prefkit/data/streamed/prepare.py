"""Streams of pairs and of solutions: `prepare_pairs` and `prepare_solutions`, row by row."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prefkit.data.dataset import Keeper
from prefkit.data.formats.detect import ReadOptions, read_row
from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.other_trainers import Columns, check_columns
from prefkit.data.formats.solutions import SOLUTION_FIELDS
from prefkit.data.left_out import LeftOut
from prefkit.data.pair import Pair
from prefkit.data.report import DataReport, Incident
from prefkit.data.solutions import SolutionReport, read_solutions
from prefkit.data.sources.files import unfilled_row
from prefkit.data.streamed.rows import Read, StreamedRows, has_own_shards
from prefkit.data.text.render import Renderer, TokenizeOptions
from prefkit.data.text.template import read_template
from prefkit.errors import ConfigError, RowError
from prefkit.files.atomic import check_writable

NAME = "stream"
Bad = Literal["error", "skip"]


def stream_pairs(
    stream: Any,
    tokenizer: Any,
    options: TokenizeOptions,
    reading: ReadOptions,
    *,
    vocab_size: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> StreamedRows:
    """Pairs of a stream, tokenised as they come.

    Args:
        stream: a `datasets.IterableDataset` of rows of any format.
        tokenizer, options, vocab_size: as in `prepare_pairs`.
        reading: see `ReadOptions`; its `skipped_file` is added to as rows come.
        part: (process, processes): each reads other rows.

    Raises:
        ConfigError: another kind of iterable, which cannot be gone back to or shared out.
    """
    _check(stream)
    name, renderer = _name(stream, part), Renderer(tokenizer, options)

    def read(rows: Sequence[tuple[int, Any]]) -> tuple[list[tuple[int, Any]], list[Incident]]:
        report = DataReport()
        keep = Keeper(report, reading, renderer, None)
        items: list[Pair | RowError] = []
        for index, data in rows:
            checked = _row(name, index, data)
            items += [checked] if isinstance(checked, RowError) else read_row(checked, reading)
        keep.add(items, vocab_size)
        return [(pair.row, pair) for pair in keep.pairs], report.incidents

    return _streamed(stream, read, options, reading.skipped_file, part)


def stream_solutions(
    stream: Any,
    tokenizer: Any,
    options: TokenizeOptions,
    *,
    columns: Columns | None = None,
    vocab_size: int | None = None,
    on_bad_row: Bad = "error",
    empty: Bad = "error",
    skipped_file: Path | None = None,
    part: tuple[int, int] = (0, 1),
) -> StreamedRows:
    """Solutions of a stream, tokenised as they come; arguments as in `stream_pairs`, and `columns`
    as in `prepare_solutions`.

    Raises:
        ConfigError: another kind of iterable, which cannot be gone back to or shared out.
    """
    columns = {} if columns is None else columns
    check_columns(columns, SOLUTION_FIELDS)
    _check(stream)
    name, renderer = _name(stream, part), Renderer(tokenizer, options)
    left_out = LeftOut(on_bad_row=on_bad_row, too_long=options.too_long, empty=empty)

    def read(rows: Sequence[tuple[int, Any]]) -> tuple[list[tuple[int, Any]], list[Incident]]:
        report = SolutionReport()
        checked = [_row(name, index, data) for index, data in rows]
        found = read_solutions(checked, renderer, report, vocab_size, left_out, columns)
        return [(solution.row, side) for solution, side in found], report.incidents

    return _streamed(stream, read, options, skipped_file, part)


def _row(name: str, index: int, data: Any) -> Row | RowError:
    if isinstance(data, Mapping):
        return Row(name, index, unfilled_row(dict(data)))
    problem = f"is a {type(data).__name__}, not an object with fields"
    return RowError(name, index, "", problem, "Give one object a row.")


def _name(stream: Any, part: tuple[int, int]) -> str:
    """What row numbers count in: the whole stream, or a process's shards of it."""
    return f"{NAME}, shards of process {part[0]}" if has_own_shards(stream, part) else NAME


def _check(stream: Any) -> None:
    if not all(hasattr(stream, name) for name in ("set_epoch", "with_format", "take")):
        raise ConfigError(
            f"train_dataset is a {type(stream).__name__}, which cannot be gone back to when a run "
            "is resumed. Make it a datasets.IterableDataset (IterableDataset.from_generator)."
        )


def _streamed(
    stream: Any,
    read: Read,
    options: TokenizeOptions,
    skipped_file: str | os.PathLike[str] | None,
    part: tuple[int, int],
) -> StreamedRows:
    if skipped_file is not None:
        skipped_file = Path(skipped_file)
        check_writable(skipped_file.parent, "skipped_file")
        if part[1] > 1:
            skipped_file = skipped_file.with_stem(f"{skipped_file.stem}_{part[0]}")
    given = options.chat_template
    template = None if given is None else read_template(given)
    return StreamedRows(stream, read, options.max_length or 2**31, skipped_file, template, part)
