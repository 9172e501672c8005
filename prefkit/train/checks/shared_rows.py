"""Processes that share rows (`sequence_parallel_size`): what cannot be shared, told by name."""

from typing import Any

from prefkit.data.batch.collators import Layout
from prefkit.errors import ConfigError, ModelError
from prefkit.model.attention.compute.ulysses import check_heads
from prefkit.train.checks.start import Start


def check_sequence_parallel(config: Any) -> None:
    """What the options alone tell.

    Raises:
        ConfigError: a loss that needs whole responses, not pieces of a row.
    """
    _check_whole_sides(config, config.sequence_parallel_size)


def check_groups(config: Any, start: Start) -> None:
    """What the start tells, of processes and engine.

    Raises:
        ConfigError: a loss that needs whole responses, not pieces of a row, DeepSpeed, or processes
            that cannot be divided into groups.
    """
    size = start.shared_by
    if size == 1:
        return
    _check_whole_sides(config, size)
    if start.deepspeed:
        raise ConfigError(
            "sequence_parallel_size and deepspeed: its engine takes an optimiser step after each "
            "backward, and a group has several in a batch. Shard with fsdp: true instead."
        )
    if start.processes % size:
        raise ConfigError(
            f"sequence_parallel_size is {size}, and this run has {start.processes} process(es): it "
            f"must divide their number. {start.remedy}."
        )


def check_shared_model(size: int, model_config: Any) -> None:
    """Whether a model's heads can be shared out; needs no more than its config.

    Args:
        size: processes that share a row; 1 shares nothing.
        model_config: of the policy.

    Raises:
        ModelError: the size does not divide the attention heads, or there are none.
    """
    if size == 1:
        return
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


def _check_whole_sides(config: Any, size: int) -> None:
    if size > 1 and (why := config.build_objective().needs_whole_sides):
        raise ConfigError(f"sequence_parallel_size and {why}, or leave sequence_parallel_size out.")
