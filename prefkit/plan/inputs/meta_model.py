"""A model on torch's meta device: its whole structure, and not one number of its weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prefkit.errors import ModelError
from prefkit.model.adapter_targets import fitted


@dataclass(frozen=True)
class Lora:
    """The adapter that a run puts on the model (`lora_r` and so on)."""

    r: int
    alpha: int
    dropout: float
    target_modules: str | list[str]
    target_parameters: list[str] | None = None
    dora: bool = False


def build(
    config: Any,
    *,
    layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    lora: Lora | None = None,
) -> Any:
    """The model on the meta device, in evaluation mode, its adapter applied.

    Args:
        config: of `load_config`; left as it is.
        layers: depth, overriding the config's own.
        dtype: of the weights.
        attention: `attn_implementation`; None = the model's default.
        lora: adapter to put on, by PEFT.

    Raises:
        ModelError: transformers cannot build it as a causal language model, or the adapter does not
            fit it.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    if layers is not None:
        _set_depth(config.get_text_config(), layers)
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        with torch.device("meta"), _quiet():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
            model = model.eval()
            return model if lora is None else _with_adapter(model, lora)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model: a {config.model_type} cannot be planned: {reason}") from error


def _set_depth(config: Any, layers: int) -> None:
    name = "num_hidden_layers" if "n_layer" not in vars(config) else "n_layer"
    setattr(config, name, layers)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = (kinds * layers)[:layers]


def _with_adapter(model: Any, lora: Lora) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError(
            "adapter: lora needs the package peft. Install it with: pip install 'prefkit[peft]'"
        ) from error
    asked = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        target_parameters=lora.target_parameters,
        use_dora=lora.dora,
    )
    return get_peft_model(model, fitted(asked, model)[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' and PEFT's advice on a model that is never run."""
    import warnings

    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers: the longest list of modules, the outermost of equals.

    Raises:
        ModelError: the model has none.
    """
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not found:
        raise ModelError(f"{type(model).__name__} has no list of layers to plan by.")
    return max(found, key=lambda stack: (len(stack), sum(p.numel() for p in stack.parameters())))
