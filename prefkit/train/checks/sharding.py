"""What of the sharding that was asked for cannot work, told before a model is loaded.

The settings come from the Trainer's options (`fsdp`, `fsdp_config`, `deepspeed`, …) or from the
variables that `accelerate launch` sets; both are read here as accelerate will read them. What is
left out of this list and of `docs/sharding.md` has been run.
"""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from prefkit.errors import ConfigError, ModelError

LAUNCH = "Start with torchrun --nproc_per_node N (or accelerate launch --num_processes N)"
WRAPPING = "TRANSFORMER_BASED_WRAP"


def flag(value: Any) -> bool:
    """Whether a variable or an option is on, however it was written."""
    return str(value).lower() in ("1", "true", "yes")


def asks_for_fsdp(config: Any) -> bool:
    """Whether the options or the launcher's variables ask for FSDP."""
    return bool(config.fsdp) or flag(os.environ.get("ACCELERATE_USE_FSDP"))


def processes() -> int:
    """How many processes the launcher says this run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def fsdp_settings(config: Any) -> dict[str, str]:
    """The FSDP settings that decide here, from `fsdp_config` or else from the FSDP_* variables.

    Raises:
        ConfigError: `fsdp_config` is no JSON file and no mapping.
    """
    names = {  # in fsdp_config: the launcher's variable, the default there
        "version": ("FSDP_VERSION", "1"),
        "auto_wrap_policy": ("FSDP_AUTO_WRAP_POLICY", "NO_WRAP"),
        "cpu_offload": ("FSDP_OFFLOAD_PARAMS", "false"),
        "state_dict_type": ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT"),
        "xla": ("", "false"),
    }
    if not config.fsdp:
        return {name: os.environ.get(key, default) for name, (key, default) in names.items()}
    given = config.fsdp_config or {}
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"fsdp_config: {given} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(
            f"fsdp_config is a {type(given).__name__}; it must be a mapping or a JSON file of one."
        )
    given = {name.removeprefix("fsdp_"): value for name, value in given.items()}
    defaults = {"version": "2", "auto_wrap_policy": WRAPPING, "state_dict_type": "FULL_STATE_DICT"}
    found = {name: str(given.get(name, defaults.get(name, "false"))) for name in names}
    if isinstance(config.fsdp, str) and "offload" in config.fsdp:
        found["cpu_offload"] = "true"
    return found


def check_sharding(config: Any) -> None:
    """Refuses ways to spread a run that give other numbers than one process, or fail later.

    Args:
        config: `transformers.TrainingArguments` before their own checks.

    Raises:
        ConfigError: names the option and what to use instead.
    """
    if str(config.fsdp).lower() in ("true", "false", "none"):
        config.fsdp = flag(config.fsdp)  # as YAML and flags write it; transformers wants a bool
    _check_parallelism(config)
    if asks_for_fsdp(config):
        _check_fsdp(config)
    elif config.deepspeed or flag(os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        _check_precomputing(config, "deepspeed")


def _check_precomputing(config: Any, engine: str) -> None:
    if not config.precomputes_reference:
        return
    name = "log_probs" if config.precompute_ref_log_probs else "hidden"
    raise ConfigError(
        f"precompute_ref_{name} and {engine}: one process would run the reference alone, before the"
        " model is sharded or while the others are not there to gather it. Leave it out: the "
        "reference is sharded as the model is."
    )


def _check_parallelism(config: Any) -> None:
    """Tensor, context, sequence and pipeline parallelism of the Trainer, accelerate, Megatron."""
    given = config.parallelism_config
    on = flag(os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG"))

    def size(name: str) -> int:
        variable = os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}", "1") if on else "1"
        return int(getattr(given, name, None) or variable)

    if size("tp_size") > 1:
        raise ConfigError(
            "parallelism_config: tp_size is above 1, but tensor parallelism cuts the head's weight,"
            " which the fused loss reads whole. Use FSDP2 (fsdp: true), which shards the memory as "
            "well."
        )
    for name in ("cp_size", "sp_size"):
        if size(name) > 1:
            raise ConfigError(
                f"parallelism_config: {name} is above 1, but that context parallelism cuts "
                "input_ids and labels only: each process would take the loss of its part of a pair "
                "for the whole one. Use prefkit's own sequence_parallel_size."
            )
    if flag(os.environ.get("ACCELERATE_USE_MEGATRON_LM")):
        raise ConfigError(
            "Megatron-LM (pipeline and tensor parallelism of accelerate) brings its own models and "
            "loss, in which the preference loss has no place. Use FSDP2."
        )


def _check_fsdp(config: Any) -> None:
    settings = fsdp_settings(config)
    if config.deepspeed or flag(os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        raise ConfigError("fsdp and deepspeed both shard the model. Leave one of them out.")
    if flag(settings["xla"]):
        raise ConfigError("fsdp_config: xla is another FSDP, which prefkit has not been run with.")
    if settings["version"] != "2":
        raise ConfigError(
            f"fsdp_config: version is {settings['version']}, but the head's gradient is exact only "
            "under FSDP2. Set version to 2 in fsdp_config (fsdp_version: 2 in accelerate's config)."
        )
    if settings["auto_wrap_policy"].upper() != WRAPPING:
        raise ConfigError(
            f"fsdp_config: auto_wrap_policy is {settings['auto_wrap_policy']}; sharded otherwise "
            "than by layer, the whole model would be gathered in every forward. Set it to "
            f"{WRAPPING} (fsdp_auto_wrap_policy in accelerate's config)."
        )
    _check_precomputing(config, "fsdp")
    if "adafactor" in str(config.optim).lower():
        raise ConfigError(
            "optim: adafactor mixes whole tensors with shards and fails at its first step under "
            "fsdp. Use adamw_torch_fused, adamw_torch or sgd."
        )
    if config.auto_find_batch_size:
        raise ConfigError(
            "auto_find_batch_size and fsdp: one process may run out of memory alone, and the others"
            " would wait for it. Set per_device_train_batch_size, or tokens_per_batch."
        )
    if config.save_only_model and "SHARDED" in settings["state_dict_type"].upper():
        raise ConfigError(
            "save_only_model and fsdp with SHARDED_STATE_DICT: shards without an optimiser are "
            "neither a model folder nor a checkpoint. Leave save_only_model out."
        )


def check_model(model: nn.Module, config: Any) -> None:
    """Refuses models that are cut already, or that cannot be cut by layer.

    Raises:
        ModelError: a model sharded or dispatched when it was loaded; under FSDP also a quantised
            one, and one that does not tell what its layers are.
    """
    if any(isinstance(value, DTensor) for value in model.parameters()):
        raise ModelError(
            "The model was sharded when it was loaded (tp_plan or distributed_config). Load it "
            "whole and shard it with fsdp: true."
        )
    if any(hasattr(value, "ds_id") for value in model.parameters()):
        raise ModelError(
            "The model was partitioned by ZeRO-3 while it was loaded, so its head cannot be proved."
            " Pass the model's name or folder instead, or load it before PreferenceConfig is made."
        )
    devices = set((getattr(model, "hf_device_map", None) or {}).values())
    if len(devices) > 1 and processes() > 1:
        raise ModelError(
            f"The model was spread over {len(devices)} devices when it was loaded (device_map), "
            "and each process would do so again. Leave device_map out, and shard with fsdp: true."
        )
    if not asks_for_fsdp(config):
        return
    if getattr(model, "is_quantized", False) or hasattr(model, "quantization_method"):
        raise ModelError(
            "The model is quantised, and fsdp would cut its packed weights. Load it in bfloat16 "
            "(with adapter: lora the frozen weights need 2 bytes each), or leave fsdp out."
        )
    if not getattr(model, "_no_split_modules", None):
        raise ModelError(
            f"{type(model).__name__} does not tell which of its modules are layers "
            "(_no_split_modules), so it cannot be sharded by layer. Leave fsdp out."
        )
