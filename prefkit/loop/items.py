"""What a preference loss is a mean over, and how much of it a batch has."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prefkit.errors import ConfigError
from prefkit.loss.objective import Objective


def items_of(batch: Mapping[str, Any], objective: Objective) -> int:
    """How many items of a batch the loss is a mean over: what `num_pairs` counts.

    They are pairs; responses with `KTO`, be all of their tokens of weight 0; groups of pairs with
    loss_type "plackett_luce".

    Args:
        batch: as in `prefkit.preference_loss`. On a GPU it is waited for only where a collator of
            your own leaves out what is counted: `sides_there` with `KTO`, `num_groups` with groups.
        objective: the loss.

    Raises:
        ConfigError: a loss of groups, and the batch brings none.
    """
    if objective.mean_over == "sides":
        return sum(sides_there(batch))
    if not objective.needs_groups:
        return len(batch["pair_index"])
    groups = groups_of(batch)
    known = batch.get("num_groups")  # a GPU would have to be asked
    return len(groups.unique()) if known is None else known


def sides_there(batch: Mapping[str, Any]) -> tuple[int, int]:
    """How many chosen and how many rejected responses a batch has."""
    known = batch.get("sides_there")  # a GPU would have to be asked
    if known is not None:
        return known
    segments = batch["segments"].unique()
    segments = segments[segments >= 0]
    return int((segments % 2 == 0).sum()), int((segments % 2 == 1).sum())


def groups_of(batch: Mapping[str, Any]) -> Tensor:
    """(B,) int64 the group of each pair, of a batch for a loss of groups.

    Raises:
        ConfigError: the batch brings none.
    """
    if "groups" not in batch:
        raise ConfigError(
            "link is plackett_luce, but the batch does not say which pairs share their chosen "
            "response: the data_collator leaves it out. Give groups (B,) int64 in each batch, "
            "the number of each pair's group from 0."
        )
    return batch["groups"]
