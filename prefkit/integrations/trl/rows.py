"""What TRL's preparation of rows leaves out: prefixes, steps without an end, weights of tokens.

TRL ends every completion of the standard format with an end-of-sequence token. A row with a
`prefix` (or `initial_reason_steps`) holds one step of a solution, and a model that is trained on an
end after a step stops there. TRL also reads no `chosen_weights` and `rejected_weights`.
"""

import logging
from collections.abc import Mapping
from typing import Any

from trl.data_utils import is_conversational

from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.fields.weights import read_token_weights
from prefkit.errors import ConfigError

logger = logging.getLogger(__name__)

SIDES = ("chosen", "rejected")
COLUMNS = tuple(f"{side}_weights" for side in SIDES)
PREFIXES = ("prefix", "initial_reason_steps")
_ENDS = "prefkit_ends"  # (chosen, rejected): whether each ends with an end-of-sequence token


def before(dataset: Any, append_eos: str, name: str, eos: str) -> Any:
    """Rows whose prompt holds their prefix, with a note of which completions end.

    Args:
        dataset: raw rows, in the form that TRL takes them.
        append_eos: see `Settings`.
        name: of the dataset, for messages.
        eos: the tokenizer's end-of-sequence token.

    Raises:
        ConfigError: a prefix in rows of messages, or without a prompt.
    """
    first = next(iter(dataset))
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
    return dataset.map(_join_prefix, with_indices=True, fn_kwargs=given)


def _join_prefix(
    example: dict[str, Any], index: int, append_eos: str, name: str, eos: str
) -> dict[str, Any]:
    row = Row(name, index, example)
    given = [row.get(column) for column in PREFIXES if row.get(column) is not None]
    prefix = "".join(given)
    # A prefix, even an empty one, says that the row is about what follows it: one step.
    ends = row.eos(default=append_eos == "always" or (append_eos == "auto" and not given))
    joined: dict[str, Any] = {_ENDS: [ends or example[side].endswith(eos) for side in SIDES]}
    if prefix and not example["prompt"].endswith(prefix):
        joined["prompt"] = example["prompt"] + prefix
    return joined


def after(dataset: Any, name: str, eos_id: int | None) -> Any:
    """Tokenised rows, without the ends that TRL has put behind steps, with a weight a token.

    Raises:
        RowError: nothing is left of a completion; weights that do not fit their tokens.
    """
    first = next(iter(dataset))
    given = {"name": name, "eos_id": eos_id}
    if _ENDS in first:
        dataset = dataset.map(
            _take_ends_off, with_indices=True, fn_kwargs=given, remove_columns=[_ENDS]
        )
    if has_weights(first):
        dataset = dataset.map(_fit_weights, with_indices=True, fn_kwargs=given)
    return dataset


def has_weights(row: Mapping[str, Any]) -> bool:
    """Whether a row of the dataset brings weights."""
    return any(column in row for column in COLUMNS)


def _take_ends_off(
    example: dict[str, Any], index: int, name: str, eos_id: int | None
) -> dict[str, Any]:
    left = {}
    for side, ends in zip(SIDES, example[_ENDS], strict=True):
        ids = example[f"{side}_ids"]
        if not ends and ids and ids[-1] == eos_id:
            ids = ids[:-1]
        if not ids:
            raise Row(name, index, example).error(side, "has no token", "Write a step.")
        left[f"{side}_ids"] = ids
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
    return fitted
