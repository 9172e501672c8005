"""Random miniatures of every causal language model of transformers.

A miniature has the released model's own code and every kind of layer that it has, in fp32 on the
CPU, a few layers deep, with weights that make its attention far from uniform and its routers
undecided between none. `sizes` says how small.
"""

import contextlib
import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.models.sizes import OF_TYPE, SMALL

# A matrix maps numbers of size 1 to numbers of this size: scores of attention then differ by two
# and more, and a token prefers some keys eight times to others.
_GAIN = 1.4
_NOISE = 0.2  # of vectors: norms, biases, sinks, which begin as ones or zeros
_LISTS_OF_LAYERS = ("layer_types", "layers_block_type", "attention_layers", "attn_layers")


def model_types() -> list[str]:
    """Every type of transformers' mapping of causal language models, in alphabetical order."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def miniature(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of a type, in fp32 on the CPU, in evaluation mode.

    Args:
        model_type: as transformers names it, such as "llama" or "qwen3_next".
        seed: of its weights.
        changes: fields of its (text) config, before the small values.
    Raises:
        Exception: whatever transformers raises where the type cannot be built here.
    """
    config = small_config(model_type, **changes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    spread(model, seed)
    return model.eval()


def small_config(model_type: str, **changes: Any) -> Any:
    """The config of a miniature, see `miniature`."""
    kind = CONFIG_MAPPING[model_type]
    values = _small_values(kind, {})
    inside = values.get("text_config", values)
    return kind(
        **values | {"text_config": inside | changes}
        if "text_config" in values
        else values | changes
    )


def _small_values(kind: type, chosen: dict[str, Any]) -> dict[str, Any]:
    """Small values for the fields of a config class and for the configs in it."""
    names = {name for one in kind.__mro__ for name in getattr(one, "__annotations__", {})}
    small = {name: copy.deepcopy(value) for name, value in SMALL.items() if name in names}
    if {"kv_lora_rank", "num_key_value_heads"} <= names:  # latent attention has no groups
        small["num_key_value_heads"] = small["num_attention_heads"]
    with contextlib.suppress(Exception):  # a class whose defaults are not valid: its fields alone
        default = kind()
        small |= _one_of_each(default, small)
        for name, part in vars(default).items():
            if isinstance(part, PreTrainedConfig):
                small[name] = _small_values(type(part), {})
    return small | copy.deepcopy(OF_TYPE.get(kind.model_type, {})) | chosen


def _one_of_each(config: Any, small: dict[str, Any]) -> dict[str, Any]:
    """Lists with an entry for each layer, cut to the first layer of each kind, in their order."""
    depth = getattr(config, "num_hidden_layers", None)
    lists = {
        name: list(value)
        for name, value in config.to_dict().items()
        if isinstance(value, list | tuple)
        and len(value) == depth
        and len({*map(str, value)}) < depth
    }
    if not lists:
        return {}
    kinds: dict[tuple[str, ...], int] = {}
    for layer in range(depth):
        kinds.setdefault(tuple(str(values[layer]) for values in lists.values()), layer)
    kept = sorted(kinds.values())
    kept = kept * 2 if len(kept) == 1 else kept
    return {
        **{n: [small.get(n, values[layer]) for layer in kept] for n, values in lists.items()},
        "num_hidden_layers": len(kept),
    }


def spread(model: nn.Module, seed: int) -> None:
    """Weights with which every part of the model does something, in place.

    Matrices keep the size of what they read times 1.4; vectors get noise of 0.2, so that no bias,
    sink or gate is 0 or the same for all.
    """
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *_biases(model)]:
            noise = torch.randn(value.shape, generator=draw)
            if value.dim() < 2 or "A_log" in name:
                value.add_(_NOISE * noise)
                continue
            inputs = (
                value.shape[1:].numel() if value.dim() == 3 and "conv" in name else value.shape[-1]
            )
            value.copy_(noise * _GAIN / inputs**0.5)


def _biases(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Buffers that choose experts, as DeepSeek-V3's e_score_correction_bias."""
    return [
        (n, b)
        for n, b in model.named_buffers()
        if "bias" in n and b.is_floating_point() and b.dim() == 1
    ]


def kinds_of(model: nn.Module) -> tuple[str, ...]:
    """The kinds of layers that a model has, in the order of their first layers.

    Args:
        model: a causal language model of transformers.
    Returns:
        transformers' names of layers ("sliding_attention", "linear_attention", …), with "experts"
        for those that have them.
    """
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    lists = [getattr(config, name, None) for name in _LISTS_OF_LAYERS]
    named = next((values for values in lists if values), None)
    other = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = []
    for index, layer in enumerate(decoder_layers(model)):
        kind = str(named[index % len(named)]) if named else other
        if not named and not any("Attention" in type(part).__name__ for part in layer.modules()):
            kind = type(layer).__name__
        experts = any("expert" in name for name, _ in layer.named_parameters())
        kinds.append(f"{kind} with experts" if experts else kind)
    return tuple(dict.fromkeys(kinds))


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the text model: of the lists as long as its config says, the largest."""
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    depth = getattr(config, "num_hidden_layers", 0)
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    found = [
        part for part in lists if len(part) == depth and "Vision" not in type(part[0]).__name__
    ]
    return list(max(found or lists, key=lambda part: sum(p.numel() for p in part.parameters())))
