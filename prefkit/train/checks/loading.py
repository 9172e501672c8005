"""What of the options by which models are loaded and adapted cannot work, told before loading."""

import json
from typing import Any

import torch

from prefkit.errors import ConfigError
from prefkit.model.loading import base_of
from prefkit.train.checks.machine import need_package
from prefkit.train.checks.sharding import asks_for_fsdp

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_ELSEWHERE = {
    "torch_dtype": "It is called dtype now",
    "trust_remote_code": "Set the option trust_remote_code itself",
    "output_loading_info": "What was loaded is checked anyway: leave it out",
}


def check_model_kwargs(config: Any) -> None:
    """Refuses keywords of `from_pretrained` that cannot be passed on; text is read as JSON.

    Args:
        config: of a run, before transformers' own checks; `model_init_kwargs` may be changed.

    Raises:
        ConfigError: no mapping, a keyword that is an option of its own, or an unknown dtype.
    """
    given = config.model_init_kwargs
    if given is None:
        return
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ConfigError(f"model_init_kwargs is no JSON: {error}.") from error
    if not isinstance(given, dict):
        raise ConfigError(
            f"model_init_kwargs is a {type(given).__name__}; it must be a mapping, such as "
            '{"attn_implementation": "sdpa"}.'
        )
    for name, remedy in _ELSEWHERE.items():
        if name in given:
            raise ConfigError(f"model_init_kwargs has {name}. {remedy}.")
    dtype = given.get("dtype", "auto")
    if not isinstance(dtype, torch.dtype) and dtype not in _DTYPES:
        raise ConfigError(
            f"model_init_kwargs has the dtype {dtype!r}; it must be one of: {', '.join(_DTYPES)}."
        )
    if isinstance(given.get("quantization_config"), dict):
        raise ConfigError(
            "model_init_kwargs has a quantization_config. Use load_in_4bit or load_in_8bit; from "
            "Python pass a BitsAndBytesConfig to the trainer as quantization_config."
        )
    config.model_init_kwargs = given


def check_quantisation(model: Any, args: Any, quantization_config: Any, peft_config: Any) -> Any:
    """Refuses quantisation that the run cannot have.

    Args:
        model: as given to the trainer.
        args: the run's options.
        quantization_config: of the trainer, or None.
        peft_config: of the trainer, or None.

    Returns:
        The one that applies: the trainer's, or that of `model_init_kwargs`.

    Raises:
        ConfigError: two of them, a model that is loaded already, FSDP, a package that is missing,
            or nothing that could train.
    """
    kwargs = args.model_init_kwargs or {}
    if not isinstance(model, str):
        asked = {"model_init_kwargs": kwargs, "quantization_config": quantization_config}
        for name, given in asked.items():
            if given:
                raise ConfigError(
                    f"{name} says how a model is loaded, and this one is loaded already. Pass the "
                    f"model's name or folder, or leave {name} out."
                )
        return None
    if quantization_config is not None and "quantization_config" in kwargs:
        raise ConfigError(
            "quantization_config is given to the trainer and in model_init_kwargs. Leave one out."
        )
    found = quantization_config or kwargs.get("quantization_config")
    if found is None:
        return None
    if asks_for_fsdp(args):
        raise ConfigError(
            "quantization_config and fsdp: sharding would cut packed weights. Load the model in "
            "bfloat16, or leave fsdp out."
        )
    method = getattr(found, "quant_method", "")
    if "bitsandbytes" in str(getattr(method, "value", method)):
        need_package("bitsandbytes", "quantization_config", "prefkit[qlora]")
    if peft_config is None and base_of(model) is None:
        raise ConfigError(
            "quantization_config makes weights that cannot train, so that only an adapter can. "
            "Give a peft_config, or leave quantization_config out."
        )
    return found
