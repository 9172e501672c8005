"""What `prefkit train` would refuse of a planned run, refused by the plan in the same words."""

from typing import Any

from prefkit.errors import ConfigError
from prefkit.model.loading import base_of
from prefkit.plan.inputs.lengths import Lengths
from prefkit.plan.inputs.setting import Setting
from prefkit.train.checks.entry import check_run
from prefkit.train.checks.start import Start


def check_planned(script: Any) -> None:
    """Refuses runs whose memory the plan does not know, though they can be made.

    Args:
        script: `ScriptArguments` of the run.

    Raises:
        ConfigError: frozen weights in 4 or 8 bits, modules that train in full beside an adapter,
            or an adapter as the model.
    """
    if bits := next((n for n in ("load_in_4bit", "load_in_8bit") if getattr(script, n)), None):
        saved = "1.5 bytes" if bits == "load_in_4bit" else "1 byte"
        raise ConfigError(
            f"{bits}: memory of quantised weights is not planned. Plan with dtype: bfloat16 in its "
            f"place; {bits} then takes {saved} less a frozen weight of a linear layer."
        )
    if script.lora_modules_to_save:
        raise ConfigError(
            "lora_modules_to_save: the copies that train in full are not planned. Leave it out of "
            "the plan, and add 16 bytes a parameter of each in float32 (weight, gradient, Adam)."
        )
    if (base := base_of(script.model)) is not None:
        raise ConfigError(
            f"model: {script.model} is an adapter. Plan with its base model and its rank: "
            f"--model {base} --adapter lora --lora_r R."
        )


def check_start(options: Any, setting: Setting, model_config: Any, launched: bool) -> None:
    """Checks of options, processes and the model's config, before anything is counted.

    A plan supposes the machine and never loads the weights: it asks `check_run` about the rest.

    Args:
        options: of `prefkit.options.parse.load_options`.
        setting: of `read_setting`.
        model_config: of `prefkit.plan.inputs.shape.load_config`.
        launched: an accelerate config starts the run.

    Raises:
        ConfigError, ModelError: see `check_run`.
    """
    start = Start(
        processes=setting.gpus,
        shared_by=setting.sequence_parallel,
        fsdp=bool(options.config.fsdp),
        deepspeed=setting.sharding == "zero3",
        alone=setting.gpus == 1 and not launched,
        remedy="Give --gpus N",
        supposed=True,
    )
    trainable = setting.lora is None
    check_run(options.config, start, model_config=model_config, trainable_head=trainable)


def check_lengths(lengths: Lengths, max_length: int | None) -> None:
    """Refuses given lengths that the run would cut, skip or refuse.

    Raises:
        ConfigError: a sequence is longer than `max_length`.
    """
    if max_length is not None and lengths.longest > max_length:
        raise ConfigError(
            f"lengths: a side of {lengths.longest} tokens is longer than max_length {max_length}, "
            "so no run would train on it. Give shorter lengths, or raise max_length."
        )
