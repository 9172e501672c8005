"""What `prefkit train` would refuse of a planned run, refused by the plan in the same words.

Some of the trainer's checks ask the machine or the weights; a plan supposes the one and never
loads the other, so they are made here of what a plan knows.
"""

from typing import Any

from prefkit.errors import ConfigError
from prefkit.plan.lengths import Lengths
from prefkit.plan.setting import Setting
from prefkit.train.checks.options import check_passes


def check_start(options: Any, setting: Setting, model_config: Any, launched: bool) -> None:
    """What options, processes and model's config tell, before anything is counted.

    Args:
        options: of `prefkit.options.parse.load_options`.
        setting: of `read_setting`.
        model_config: of `prefkit.plan.model.load_config`.
        launched: an accelerate config starts the run.

    Raises:
        ConfigError: passes of the head that cannot compute the loss; FSDP in one process; a
            loss or DeepSpeed beside processes that share rows.
        ModelError: processes that share a row and cannot share the model's heads.
    """
    config = options.config
    check_passes(config, config.build_objective(), trainable=setting.lora is None)
    if config.fsdp and setting.gpus == 1 and not launched:
        raise ConfigError(
            "fsdp shards a model over several processes, and this is one alone. Give --gpus N, or "
            "leave fsdp out."
        )
    if setting.sequence_parallel == 1:
        return
    if config.reduction == "position":
        raise ConfigError(
            "sequence_parallel_size and reduction 'position': that loss pairs the i-th tokens of "
            "both sides, which lie on different processes. Use reduction: sequence."
        )
    if setting.sharding == "zero3":
        raise ConfigError(
            "sequence_parallel_size and deepspeed: its engine takes an optimiser step after each "
            "backward, and a group has several in a batch. Shard with fsdp: true instead."
        )
    from prefkit.train.sharding.sequence_parallel import check_shared_model

    check_shared_model(setting.sequence_parallel, model_config)


def check_lengths(lengths: Lengths, max_length: int | None) -> None:
    """Refuses given lengths that the run would cut, skip or refuse.

    Raises:
        ConfigError: a side is longer than `max_length`.
    """
    if max_length is not None and lengths.longest > max_length:
        raise ConfigError(
            f"lengths: a side of {lengths.longest} tokens is longer than max_length {max_length}, "
            "so no run would train on it. Give shorter lengths, or raise max_length."
        )
