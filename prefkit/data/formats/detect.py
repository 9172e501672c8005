"""Raw rows of the published formats → Pair: which format a row has, and who reads it.

    prefkit    prompt, chosen, rejected, optional prefix, weights, spans, append_eos
    trl        the same three fields; the prompt may be implicit; strings or messages
    step-dpo   Math-Step-DPO-10K (arXiv 2406.18629): initial_reason_steps, full_chosen, …
    scdpo      role lists with `assistant_correct` steps and typed blocks (arXiv 2407.00782)
    cdpo       scored files with prob_result (arXiv 2411.19943); unscored ones are trl rows
    tdpo       one prompt with responses and index pairs (arXiv 2404.11999)
    unpaired   one completion with a label, where the method reads such rows (arXiv 2402.01306)

The format of a row is detected from its fields, so one source may mix several. Rows of other
trainers are brought into these (other_trainers.py), and no text column is passed over. Other fields
are ignored if they hold no text, or if their name says that they describe the row. A name that is
nearly that of an optional field is taken for a spelling mistake, and the row is refused. A row of
any format may have several rejected responses (several.py).
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefkit.data.formats.conversations import read_conversation
from prefkit.data.formats.fields.messages import has_blocks
from prefkit.data.formats.fields.responses import RowOptions
from prefkit.data.formats.fields.row import Row, iter_rows
from prefkit.data.formats.other_trainers import Columns, check_columns, known, renamed
from prefkit.data.formats.papers import read_cdpo, read_step_dpo, read_tdpo
from prefkit.data.formats.several import by_rejected, same_choice
from prefkit.data.formats.strings import read_strings
from prefkit.data.formats.unpaired import is_unpaired, read_unpaired
from prefkit.data.left_out import LeftOut
from prefkit.data.pair import Pair, is_conversational
from prefkit.data.sources.files import Rows, load_rows
from prefkit.errors import ConfigError, RowError

# A format: its reader, in a file of this folder, and its mark in `detect_format`.
FORMATS: dict[str, Callable[[Row, RowOptions], Iterator[Pair | RowError]]] = {
    "prefkit": read_strings,
    "trl": read_strings,
    "step-dpo": read_step_dpo,
    "scdpo": read_conversation,
    "cdpo": read_cdpo,
    "tdpo": read_tdpo,
}


@dataclass(frozen=True, kw_only=True)
class ReadOptions(RowOptions):
    """How rows are read, and what becomes of bad ones.

    Attributes:
        level, mask_tool_output, block_style: see `RowOptions`.
        format: one of FORMATS, or "auto" to detect it from the fields of each row.
        columns: prefkit's field → the column that holds it; a column → None leaves it out.
        on_bad_row, empty, equal: which bad rows are left out, see `LeftOut`.
        skipped_file: JSON Lines file for skipped and cut rows, or None.
        margins: read each row's `margin`, a number: by how much its chosen response is better.
        unpaired: read rows of one labelled response, too (unpaired.py).
    """

    format: str = "auto"
    columns: Columns = field(default_factory=dict)
    on_bad_row: Literal["error", "skip"] = "error"
    empty: Literal["error", "skip"] = "error"
    equal: Literal["error", "skip"] = "error"
    skipped_file: str | os.PathLike[str] | None = None
    margins: bool = False
    unpaired: bool = False

    @classmethod
    def of(cls, options: Any, **more: Any) -> "ReadOptions":
        """From an object with `ReadingFields` and `TextFields`; `more` overrides and adds."""
        names = ("mask_tool_output", "format", "block_style", "on_bad_row", "empty", "equal")
        values = {name: getattr(options, name) for name in names if name not in more}
        return cls(**values, columns=options.columns or {}, **more)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format != "auto" and self.format not in FORMATS:
            names = ", ".join(["auto", *FORMATS])
            raise ConfigError(f"format is {self.format!r}. Choose one of: {names}.")
        check_columns(self.columns)
        self.left_out()

    def left_out(self, too_long: str = "error") -> LeftOut:
        """Which bad rows are left out; `too_long` is a `TokenizeOptions`'s."""
        return LeftOut(
            on_bad_row=self.on_bad_row, too_long=too_long, empty=self.empty, equal=self.equal
        )


MARGIN = "Give every row a margin, or leave margin_weight out."


def read_pairs(
    source: Any,
    *,
    level: str = "step",
    mask_tool_output: bool = True,
    format: str = "auto",
    split: str = "train",
    block_style: str = "plain",
    columns: Columns | None = None,
) -> list[Pair]:
    """Read every pair of a source (anything `load_rows` takes), in order.

    Args:
        level, mask_tool_output, format, block_style, columns: see `ReadOptions`.
        split: which split of a dataset with several.

    Raises:
        RowError: the first row that cannot be read.
        PrefkitError: the source itself cannot be read.
    """
    options = ReadOptions(
        level=level,
        mask_tool_output=mask_tool_output,
        format=format,
        block_style=block_style,
        columns={} if columns is None else columns,
    )
    pairs = []
    for item in iter_pairs(load_rows(source, split=split), options):
        if isinstance(item, RowError):
            raise item
        pairs.append(item)
    return pairs


def iter_pairs(rows: Rows, options: ReadOptions) -> Iterator[Pair | RowError]:
    """The pairs of loaded rows; a bad row yields its `RowError` and reading goes on."""
    for row in iter_rows(rows):
        yield from [row] if isinstance(row, RowError) else read_row(row, options)


def read_row(row: Row, options: ReadOptions) -> Iterator[Pair | RowError]:
    """The pairs of one row, or its `RowError`: one pair, but for rows of the TDPO layout and those
    with several rejected responses, of which a bad one does not spoil the others."""
    try:
        row = renamed(row, options.columns)
        if options.unpaired and is_unpaired(row):
            yield read_unpaired(row)
            return
        row.check_names()
        rows = by_rejected(known(row))
    except RowError as error:
        yield error
        return
    first: Pair | None = None
    for one in rows:
        for pair in _read_one(one, options):
            if first is None and len(rows) > 1 and isinstance(pair, Pair):
                first = pair
            yield pair if first is None else same_choice(first, pair, one)


def _read_one(row: Row, options: ReadOptions) -> Iterator[Pair | RowError]:
    try:
        name = detect_format(row) if options.format == "auto" else options.format
        margin = row.number("margin", MARGIN) if options.margins else None
        for pair in FORMATS[name](row, options):
            yield pair if isinstance(pair, RowError) else replace(pair, margin=margin)
    except RowError as error:
        yield error


def detect_format(row: Row) -> str:
    """The format a row's fields speak of."""
    if "responses" in row and "pairs" in row:
        return "tdpo"
    if "prob_result" in row:
        return "cdpo"
    if "initial_reason_steps" in row or ("prefix" in row and "full_chosen" in row):
        return "step-dpo"
    if is_conversational(row.get("chosen")):
        return "scdpo" if _is_scdpo(row) else "trl"
    return "prefkit"


def _is_scdpo(row: Row) -> bool:
    sides = (row.get(name) or [] for name in ("chosen", "rejected"))
    messages = [m for side in sides for m in (side if isinstance(side, list) else [side])]
    return any(
        isinstance(m, dict)
        and (m.get("role") == "assistant_correct" or has_blocks(m.get("content")))
        for m in messages
    )
