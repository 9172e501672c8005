"""One raw row, read with checks: every access that can fail names the row and the field.

The format readers (formats/) say what a row means; this file only knows how to take a text, a
list of messages or a flag out of it, or to refuse with a remedy.
"""

import difflib
import functools
import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from prefkit.data.sources.files import RawRow, Rows
from prefkit.errors import EmptyError, RowError

NEEDED = "Give every row prompt, chosen and rejected."
# Fields a row may leave out: misspelt, they would be missed by nobody.
OPTIONAL = (
    "prefix",
    "initial_reason_steps",
    "full_chosen",
    "full_rejected",
    "chosen_weights",
    "rejected_weights",
    "chosen_spans",
    "rejected_spans",
    "append_eos",
    "prob_result",
    "system",
    "tools",
    "chat_template_kwargs",
)
# Fields that our own builds write beside these, and that look like them.
OURS = ("prefix_steps", "chosen_steps", "rejected_steps", "chosen_scores")
_NEAR = 0.85  # chosen_wieghts is 0.93 like chosen_weights, rejected_lengths 0.81 like its weights


class Row:
    """A raw row with its source and index, for messages.

    Args:
        source, index: where the row came from; `index` is 0-based.
        data: the row. A field that is None counts as absent, as columns of a table do.
        shown: field → the column that it comes from, where that has another name.

    Attributes:
        names: of all columns, those that are None included.
    """

    def __init__(
        self, source: str, index: int, data: RawRow, shown: Mapping[str, str] | None = None
    ) -> None:
        self.source, self.index, self.shown = source, index, dict(shown or {})
        self.names = tuple(data)
        self.data = {name: value for name, value in data.items() if value is not None}

    def of(self, data: RawRow, shown: Mapping[str, str]) -> "Row":
        """The same row with its fields under other names."""
        nulls = {name: None for name in self.names if name not in self.data}
        return type(self)(self.source, self.index, {**nulls, **data}, shown)

    def __contains__(self, field: str) -> bool:
        return field in self.data

    def get(self, field: str) -> Any:
        """The field's value, None where absent."""
        return self.data.get(field)

    def error(
        self, field: str, problem: str, remedy: str, kind: type[RowError] = RowError
    ) -> RowError:
        name, *rest = re.split(r"(?=[.\[])", field, maxsplit=1)
        shown = self.shown.get(name, name) + "".join(rest)
        return kind(self.source, self.index, shown, problem, remedy)

    def empty(self, field: str) -> RowError:
        """The error of a field that says nothing."""
        return self.error(field, "is empty", "Fill it in or remove the row.", EmptyError)

    def require(self, field: str, remedy: str = NEEDED) -> Any:
        if field in self.data:
            return self.data[field]
        if field in self.names:  # a table's null: a row that says nothing, not one of another kind
            raise self.error(field, "is null", remedy, EmptyError)
        raise self.error(field, "is missing", remedy)

    def check_names(self, optional: tuple[str, ...] = OPTIONAL) -> None:
        """Raises RowError for a misspelt optional field; others are the business of
        other_trainers.py."""
        near = _misspelt(tuple(map(str, self.data)), optional)
        if near is not None:
            name, meant = near
            problem = f"is no field that is read, but nearly '{meant}'"
            raise self.error(name, problem, f"Rename it to '{meant}', or remove it.")

    def text(self, field: str, *, empty: bool = False, remedy: str = NEEDED) -> str:
        """A string field. Raises RowError when missing, no string, or (unless `empty`) blank."""
        return self.as_text(self.require(field, remedy), field, empty=empty)

    def as_text(self, value: Any, field: str, *, empty: bool = False) -> str:
        if not isinstance(value, str):
            raise self.error(field, f"is a {type(value).__name__}, not text", "Write a string.")
        if not empty and not value.strip():
            raise self.empty(field)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            problem = f"holds a broken character at position {error.start} (a lone surrogate)"
            raise self.error(field, problem, "Write the text as valid Unicode.") from error
        return value

    def number(self, field: str, remedy: str) -> float:
        """A finite number. Raises RowError when it is missing or anything else."""
        value = self.require(field, remedy)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self.error(field, f"is {value!r}, not a finite number", remedy)
        return float(value)

    def eos(self, default: bool) -> bool:
        """The row's `append_eos`: true, false, or "auto" (= `default`)."""
        value = self.data.get("append_eos", "auto")
        if isinstance(value, bool):
            return value
        if value != "auto":
            problem = f"is {value!r}"
            raise self.error("append_eos", problem, 'Write true, false or "auto".')
        return default


def iter_rows(rows: Rows) -> Iterator[Row | RowError]:
    """Loaded rows with their indices; what could not be read stays its `RowError`."""
    for index, data in enumerate(rows):
        yield data if isinstance(data, RowError) else Row(rows.source, index, data)


@functools.lru_cache(maxsize=256)
def _misspelt(names: tuple[str, ...], optional: tuple[str, ...]) -> tuple[str, str] | None:
    """The first name that nearly is an optional field the row lacks, with that field."""
    lacking = [field for field in optional if field not in names]
    for name in names:
        if name not in optional and name not in OURS:
            near = difflib.get_close_matches(name.lower(), lacking, n=1, cutoff=_NEAR)
            if near:
                return name, near[0]
    return None
