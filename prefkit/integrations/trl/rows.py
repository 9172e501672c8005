"""What TRL's preparation of rows leaves out: prefixes, steps without an end, weights of tokens.

TRL ends every completion of the standard format with an end-of-sequence token. A row with a
`prefix` (or `initial_reason_steps`) holds one step of a solution, and a model that is trained on an
end after a step stops there. TRL also reads no `chosen_weights` and `rejected_weights`.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from trl.data_utils import is_conversational

from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.fields.weights import read_token_weights
from prefkit.errors import ConfigError

logger = logging.getLogger(__name__)

SIDES = ("chosen", "rejected")
COLUMNS = tuple(f"{side}_weights" for side in SIDES)
PREFIXES = ("prefix", "initial_reason_steps")
READ = (*COLUMNS, *PREFIXES, "append_eos")  # what TRL would drop without a word
_ENDS = "prefkit_ends"  # (chosen, rejected): whether each ends with an end-of-sequence token


def first_row(dataset: Any, name: str, max_length: int | None = None) -> dict[str, Any]:
    """The first row of a dataset.

    Args:
        name: of the dataset, for messages.
        max_length: by which TRL has left rows out, if it has.

    Raises:
        ConfigError: there is none.
    """
    for row in dataset:
        found: dict[str, Any] = row
        return found
    if max_length is None:
        raise ConfigError(f"The {name} dataset has no rows.")
    raise ConfigError(
        f"No row of the {name} dataset is left: TRL drops those whose prompt alone fills "
        f"max_length ({max_length} tokens). Raise max_length, shorten the prompts, or leave the "
        "dataset out."
    )


def before(dataset: Any, append_eos: str, name: str, eos: str, num_proc: int | None = None) -> Any:
    """Rows whose prompt holds their prefix, with a note of which completions end.

    Args:
        dataset: raw rows, in the form that TRL takes them.
        append_eos: see `Settings`.
        name: of the dataset, for messages.
        eos: the tokenizer's end-of-sequence token.
        num_proc: processes that share the work.

    Raises:
        ConfigError: a prefix in rows of messages, or without a prompt; no rows.
        RowError: a column that is nearly one that is read; a field that is no text.
    """
    first = first_row(dataset, name)
    Row(name, 0, first).check_names(READ)
    has_prefix = any(column in first for column in PREFIXES)
    if not has_prefix and "append_eos" not in first and append_eos == "auto":
        return dataset
    if is_conversational(first):
        if has_prefix:
            raise ConfigError(
                f"The {name} dataset has a prefix beside messages: TRL's chat templates cannot "
                "continue a turn. Write prompts, prefixes and completions as text, or train with "
                "prefkit.PreferenceTrainer, which reads such rows."
            )
        return dataset
    if has_prefix:
        if "prompt" not in first:
            raise ConfigError(f"The {name} dataset has a prefix and no prompt. Write both.")
        logger.info("Rows of the %s dataset have a prefix: it continues their prompt.", name)
    given = {"append_eos": append_eos, "name": name, "eos": eos}
    return _map(dataset, _join_prefix, num_proc, fn_kwargs=given)


def _map(dataset: Any, function: Any, num_proc: int | None, **given: Any) -> Any:
    """`dataset.map` with indices, over processes where the dataset is no stream."""
    if isinstance(dataset, Dataset):
        given["num_proc"] = num_proc
    return dataset.map(function, with_indices=True, **given)


def _join_prefix(
    example: dict[str, Any], index: int, append_eos: str, name: str, eos: str
) -> dict[str, Any]:
    row = Row(name, index, example)
    given = [row.text(column, empty=True) for column in PREFIXES if column in row]
    prefix = "".join(given)
    # A prefix, even an empty one, says that the row is about what follows it: one step.
    ends = row.eos(default=append_eos == "always" or (append_eos == "auto" and not given))
    joined: dict[str, Any] = {
        _ENDS: [ends or row.text(side, empty=True).endswith(eos) for side in SIDES]
    }
    if prefix and not (prompt := row.text("prompt", empty=True)).endswith(prefix):
        joined["prompt"] = prompt + prefix
    return joined


def after(
    dataset: Any,
    name: str,
    eos: tuple[str, int | None],
    max_length: int | None = None,
    num_proc: int | None = None,
) -> Any:
    """Tokenised rows, without the ends that TRL has put behind steps, with a weight a token.

    Args:
        name, num_proc: see `before`.
        eos: the tokenizer's end-of-sequence token, and its number.
        max_length: TRL's.

    Raises:
        RowError: nothing is left of a completion; weights that do not fit their tokens.
        ConfigError: TRL has left no row.
    """
    first = first_row(dataset, name, max_length)
    text, number = eos
    given = {"name": name, "eos_id": number}
    if _ENDS in first:
        ends = {**given, "eos": text}
        dataset = _map(dataset, _take_ends_off, num_proc, fn_kwargs=ends, remove_columns=[_ENDS])
    if has_weights(first):
        dataset = _map(dataset, _fit_weights, num_proc, fn_kwargs=given)
    return dataset


def lengths_of(dataset: Dataset) -> np.ndarray:
    """(rows,) int64: tokens of the longer side of each row that TRL has prepared."""
    names = ["prompt_ids", "chosen_ids", "rejected_ids"]
    found = [np.zeros(0, dtype=np.int64)]
    for table in dataset.select_columns(names).with_format("arrow").iter(1000):
        prompt, *sides = (pc.list_value_length(table[name]).to_numpy() for name in names)
        found.append(prompt.astype(np.int64) + np.maximum(*sides))
    return np.concatenate(found)


def has_weights(row: Mapping[str, Any]) -> bool:
    """Whether a row of the dataset brings weights."""
    return any(column in row for column in COLUMNS)


def _take_ends_off(
    example: dict[str, Any], index: int, name: str, eos_id: int | None, eos: str
) -> dict[str, Any]:
    """Of the tokens and of the text: the rows may be prepared again, by `evaluate`."""
    left: dict[str, Any] = {}
    for side, ends in zip(SIDES, example[_ENDS], strict=True):
        ids = example[f"{side}_ids"]
        if not ends and ids and ids[-1] == eos_id:
            ids = ids[:-1]
        if not ids:
            raise Row(name, index, example).error(side, "has no token", "Write a step.")
        left[f"{side}_ids"] = ids
        if not ends and eos:
            left[side] = example[side].removesuffix(eos)
    return left


def _fit_weights(
    example: dict[str, Any], index: int, name: str, eos_id: int | None
) -> dict[str, Any]:
    """One weight for each token of a completion; an end that the row says nothing of has 1."""
    row = Row(name, index, example)
    fitted = {}
    for side, column in zip(SIDES, COLUMNS, strict=True):
        ids, given = example[f"{side}_ids"], read_token_weights(row, column)
        if given is None:
            fitted[column] = [1.0] * len(ids)
            continue
        weights = list(given.weights)
        if len(weights) == len(ids) - 1 and ids[-1] == eos_id:
            weights.append(1.0)
        if len(weights) != len(ids):
            problem = f"has {len(given.weights)} weights for a completion of {len(ids)} tokens"
            raise row.error(column, problem, "Give one weight a token of this tokenizer.")
        if given.tokens is not None and list(given.tokens) != ids[: len(given.tokens)]:
            problem = f"was made for the tokens {list(given.tokens)}, here they are {ids}"
            raise row.error(column, problem, "Weigh the row again with this tokenizer.")
        fitted[column] = weights
    if not any(map(any, fitted.values())):
        problem = "and rejected_weights are all 0: nothing is learnt from this row"
        raise row.error(COLUMNS[0], problem, "Remove the row.")
    return fitted
