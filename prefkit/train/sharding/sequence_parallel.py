"""Processes that share rows: who shares with whom, and what cannot be shared.

`sequence_parallel_size` processes with consecutive ranks hold a piece of each row. Every process
still reads its own pairs; the group trains on its members' batches in turn
(`prefkit.train.loss_step`), so a step has as many pairs as without sharing and a process holds the
activations of one piece at a time.
"""

import os
from typing import Any

import torch.distributed as dist

from prefkit.data.batch.collators import Layout
from prefkit.errors import ConfigError, ModelError
from prefkit.model.attention.ulysses import check_heads

WITH_DEEPSPEED = (
    "sequence_parallel_size and deepspeed: its engine takes an optimiser step after each backward, "
    "and a group has several in a batch. Shard with fsdp: true instead."
)


def check_sequence_parallel(config: Any) -> None:
    """What the options alone tell.

    Raises:
        ConfigError: a loss that aligns positions over the pieces, or DeepSpeed.
    """
    if config.sequence_parallel_size == 1:
        return
    if config.reduction == "position":
        raise ConfigError(
            "sequence_parallel_size and reduction 'position': that loss pairs the i-th tokens of "
            "both sides, which lie on different processes. Use reduction: sequence."
        )
    if config.deepspeed:
        raise ConfigError(WITH_DEEPSPEED)


def check_sharing_processes(config: Any) -> None:
    """What the launcher's variables tell, when a run starts.

    Raises:
        ConfigError: processes that cannot be divided into groups, or DeepSpeed.
    """
    if (size := getattr(config, "sequence_parallel_size", 1)) == 1:
        return
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ConfigError(WITH_DEEPSPEED)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes % size:
        raise ConfigError(
            f"sequence_parallel_size is {size}, and this run has {processes} process(es): it must "
            "divide their number. Start with torchrun --nproc_per_node N."
        )


def check_shared_model(size: int, model_config: Any) -> None:
    """Whether a model's heads can be shared out; needs no more than its config.

    Raises:
        ModelError: the size does not divide the attention heads, or there are none.
    """
    text = model_config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        raise ModelError(
            f"sequence_parallel_size: a model of type {text.model_type} has no attention heads to "
            "share out. Leave it out."
        )
    check_heads(heads, getattr(text, "num_key_value_heads", None) or heads, size)


def check_shared_layout(size: int, layout: Layout) -> None:
    """Refuses padded rows, which cannot be cut into pieces.

    Raises:
        ConfigError: the model or the collator needs padded rows.
    """
    if size > 1 and layout == "padded":
        raise ConfigError(
            "sequence_parallel_size needs rows without padding, and this run has padded ones: the "
            "line above says why (a data_collator of your own makes its own). Leave "
            "sequence_parallel_size out."
        )


def join_group(size: int) -> dist.ProcessGroup | None:
    """The group of this process, or None where each has its rows for itself."""
    if size == 1:
        return None
    group, _ = dist.new_subgroups(size)
    return group
