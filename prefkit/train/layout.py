"""Which layout a run's batches have: what was asked for, as far as its models can read it."""

import logging
from typing import Any

from torch import nn

from prefkit.data.batch import Layout
from prefkit.errors import ModelError
from prefkit.model.attention import install_attention, remove_attention, why_not
from prefkit.train.config import PreferenceConfig
from prefkit.train.datasets import pair_of

logger = logging.getLogger(__name__)


def longest_sequence(datasets: list[Any]) -> int:
    """Tokens of the longest side of any pair; 0 without pairs."""
    longest = 0
    for dataset in datasets:
        for i in range(len(dataset)):
            pair = pair_of(dataset[i])
            longest = max(longest, len(pair.chosen.ids), len(pair.rejected.ids))
    return longest


def choose_layout(args: PreferenceConfig, models: list[nn.Module], longest: int) -> Layout:
    """Prepares the models for rows without padding, or says why they get padded ones.

    Args:
        args: `layout` and `disable_dropout` are read.
        models: the policy and, if it is another model, the reference.
        longest: tokens of the longest sequence of the data.

    Returns:
        "shared" or "separate" (one row without padding), or "padded".

    Raises:
        ModelError: layout is "shared", and a model cannot read shared prefixes.
    """
    for model in models:
        install_attention(model)
    reasons = [reason for model in models if (reason := why_not(model, longest))]
    if not args.disable_dropout:
        reasons.append("disable_dropout is off, and attention without padding has no dropout")
    if not reasons:
        return "separate" if args.layout == "separate" else "shared"
    for model in models:
        remove_attention(model)
    if args.layout == "shared":
        raise ModelError(f"layout: shared cannot be had: {reasons[0]}. Use layout: separate.")
    logger.warning("Layout: each side is a padded row of its own, because %s.", reasons[0])
    return "padded"
