"""Which layout a run's batches have: what was asked for, as far as its models can read it."""

import logging
from typing import Any

import torch.distributed as dist
from torch import nn

from prefkit.data.batch.bundles import row_tokens
from prefkit.data.batch.collators import Layout
from prefkit.data.batch.packing import PackedDataset
from prefkit.data.dataset import PairDataset
from prefkit.data.streamed.rows import StreamedRows
from prefkit.errors import ConfigError, ModelError
from prefkit.model.attention.install import (
    install_attention,
    remove_attention,
)
from prefkit.model.attention.layer_test import NO_NUMBER
from prefkit.model.attention.limits import too_long_for, why_not
from prefkit.model.attention.mixers import apply_unpackings, unpackings_of
from prefkit.train.rows.datasets import pair_of, pairs_of, plain

logger = logging.getLogger(__name__)

_WORTHWHILE = 0.8  # of the tokens of pairs alone: what trees of whole questions must come to


def longest_sequence(datasets: list[Any]) -> int:
    """Tokens of the longest side of any pair, or that one of a stream may have; 0 without pairs."""
    longest = 0
    for dataset in map(plain, datasets):
        if isinstance(dataset, StreamedRows):
            longest = max(longest, dataset.longest)
            continue
        for i in range(len(dataset)):
            pair = pair_of(dataset[i])
            longest = max(longest, len(pair.chosen.ids), len(pair.rejected.ids))
    return longest


def describe_rows(layout: Layout, dataset: Any) -> str:
    """What the model reads of the pairs, in words: the layout, tokens saved, rows packed.

    Args:
        layout: of the collator.
        dataset: pairs as they are trained on, packed or not.
    """
    pairs = [pair for _, pair in plain(dataset)]
    full = row_tokens(pairs, "separate")
    if layout == "padded":
        text = f"padded, {full:,} tokens and what pads them"
    elif layout == "separate":
        text = f"without padding, {full:,} tokens"
    else:
        in_trees = layout == "tree" and isinstance(dataset, PackedDataset)
        read = dataset.tokens if in_trees else row_tokens(pairs, "shared")
        what = "each token of a question" if in_trees else "common prefixes of pairs"
        text = f"{what} read once, {read:,} of {full:,} tokens ({1 - read / full:.0%} saved)"
    if isinstance(dataset, PackedDataset) and dataset.budget:
        text += f"; packed into {len(dataset)} rows, {dataset.fill:.0%} full"
    return text


def say_what_trees_save(layout: Layout, dataset: Any, training: bool) -> None:
    """One line, where rows of whole questions would read much less than pairs drawn at random."""
    if layout != "tree" or not training or not isinstance(plain(dataset), PairDataset):
        return
    pairs = pairs_of(dataset)
    alone, together = row_tokens(pairs, "shared"), row_tokens(pairs, "tree")
    if together < _WORTHWHILE * alone:
        logger.info(
            "Questions have several pairs: with each question in one row the model would read "
            "%s tokens an epoch instead of %s. Set tokens_per_batch.",
            f"{together:,}",
            f"{alone:,}",
        )


def choose_layout(
    args: Any, models: list[nn.Module], longest: int, option: str = "layout"
) -> Layout:
    """Prepares the models for rows without padding, or says why they get padded ones.

    Args:
        args: `layout` and `disable_dropout` are read.
        models: the policy and, if it is another model, the reference.
        longest: tokens of the longest sequence of the data.
        option: what `layout` is called where it was given, for messages.

    Returns:
        "tree", "shared" or "separate" (one row without padding), or "padded".

    Raises:
        ModelError: layout is "tree" or "shared", and a model cannot read common prefixes; a model's
            weights hold NaN or infinity.
    """
    for model in models:
        install_attention(model)
    reasons = [reason for model in models if (reason := why_not(model, longest))]
    if not args.disable_dropout:
        reasons.append("disable_dropout is off, and attention without padding has no dropout")
    reasons = _of_all_processes(reasons)
    if not reasons:
        for model in models:
            # A process may hold the weights that another one had to do without.
            everywhere = _of_all_processes([*unpackings_of(model).items()])
            apply_unpackings(model, dict(everywhere))
        if words := describe_unpacked(models[0]):
            logger.info("Layout: %s.", words)
        return "tree" if args.layout == "auto" else args.layout
    for model in models:
        remove_attention(model)
    if broken := [reason for reason in reasons if NO_NUMBER in reason]:
        raise ModelError(f"{broken[0]}. Load it from an undamaged checkpoint.")
    if args.layout in ("tree", "shared"):
        raise ModelError(
            f"{option}: {args.layout} cannot be had: {reasons[0]}. Leave {option} at auto, which "
            "gives each side a padded row of its own here."
        )
    logger.warning("Layout: each side is a padded row of its own, because %s.", reasons[0])
    return "padded"


def check_lengths(layout: Layout, model: nn.Module, longest: int) -> None:
    """Refuses sequences that the layout, chosen for those of the beginning, cannot hold.

    Args:
        layout: of the run.
        model: the causal LM that reads the rows.
        longest: tokens of the longest sequence of rows that came later.

    Raises:
        ConfigError: see above.
    """
    reason = None if layout == "padded" else too_long_for(model, longest)
    if reason is not None:
        raise ConfigError(
            f"This dataset has longer sequences than those the layout was chosen for: {reason}."
            " Give it to the trainer as eval_dataset from the start, and padded rows are taken."
        )


def describe_unpacked(model: nn.Module) -> str | None:
    """What of a model reads a common prefix with each response all the same, in words, or None."""
    found = unpackings_of(model).values()
    if not found:
        return None
    kinds = " and ".join(sorted({how.kind for how in found}))
    return (
        f"{kinds} ({len(found)} modules) cannot read several sequences in one row and gets each by "
        "itself, a common prefix with each response"
    )


def _of_all_processes(found: list[Any]) -> list[Any]:
    """What any process found: all must lay their rows out alike, and one may hold no weights."""
    if not dist.is_initialized():
        return found
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found)
    return [one for of_one in everywhere for one in of_one]
