"""A small model of the same class as one whose weights are not here, to try out what it computes.

Few layers, one of each kind, narrow ones, a small vocabulary and random weights; experts, and how
many a token chooses, are as many as the model's own. The weights depend on nothing but the config,
so that all processes see the same.
"""

import copy
from typing import Any

import torch
from torch import nn

_LAYERS, _VOCAB, _WIDTH = 2, 64, 16
_LARGEST = 2**30  # numbers of a copy, 4 GiB: a config whose sizes have other names stays as it is
# Each makes every layer one of experts, where the config has it.
_ALL_SPARSE: dict[str, Any] = {
    "first_k_dense_replace": 0,
    "num_dense_layers": 0,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "moe_layer_start_index": 0,
    "moe_layer_interval": 1,
    "interleave_moe_layer_step": 1,
    "moe_layers": list(range(64)),
    "expert_layer_period": 1,
    "expert_layer_offset": 0,
}


def small_copy(model: Any, layers: int = _LAYERS, all_sparse: bool = True) -> nn.Module:
    """A small model of a model's class, in fp32 on the CPU and in evaluation mode.

    Args:
        model: a causal LM of transformers; its weights are not read.
        layers: at most so many, or one of each kind that the config lists.
        all_sparse: every layer is one of experts, where the config has such.

    Raises:
        Exception: whatever its class raises of a config that is not fit to be made smaller.
    """
    try:
        return _made(type(model), _smaller(model.config, layers, all_sparse, narrow=True))
    except Exception:  # sizes that depend on each other in ways of its own
        return _made(type(model), _smaller(model.config, layers, all_sparse, narrow=False))


def _made(kind: Any, config: Any) -> nn.Module:
    """The model, tried on a few tokens; its matrices so wide that routers have a choice to make."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"the smallest copy of {kind.__name__} would have {size} parameters")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.manual_seed(0)
        made: nn.Module = kind(config).float().eval()
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
        made(input_ids=torch.arange(4)[None], use_cache=False)
    return made


def _smaller(config: Any, most: int, all_sparse: bool, narrow: bool) -> Any:
    """A config of few layers with narrow feed-forwards, and of few heads if `narrow`."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    for part in (config, *(part for part in parts if part is not None)):
        _shrink(part, most, all_sparse, narrow)
    return config


def _shrink(config: Any, most: int, all_sparse: bool, narrow: bool) -> None:
    layers = getattr(config, "num_hidden_layers", None)
    found = {name: value for name, value in vars(config).items() if value is not None}
    sparse = _ALL_SPARSE if all_sparse else {}
    changes: dict[str, Any] = {n: v for n, v in sparse.items() if n in found}
    by_layer = {
        name: value
        for name, value in found.items()
        if isinstance(value, list) and len(value) == layers and name not in changes
    }
    # The last ones may take their keys and values from layers before them.
    own = (layers or 0) - found.get("num_kv_shared_layers", 0)
    shared = [layer >= own for layer in range(layers or 0)]
    chosen = _one_of_each(list(zip(*by_layer.values(), shared, strict=True)), layers or 0, most)
    for name, value in found.items():
        if name in by_layer:
            changes[name] = [value[layer] for layer in chosen]
        elif "intermediate_size" in name and isinstance(value, int):
            changes[name] = min(value, _WIDTH)
        elif name.startswith("vocab_size"):  # Gemma-3n has a second one
            changes[name] = min(value, _VOCAB)
        elif name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            changes[name] = None
    if layers is not None:
        changes |= {"num_hidden_layers": len(chosen)}
    if "num_blocks" in found:  # xLSTM's name of the same
        changes |= {"num_blocks": len(chosen)}
    if "num_kv_shared_layers" in found:
        changes |= {"num_kv_shared_layers": sum(shared[layer] for layer in chosen)}
    if narrow:
        changes |= _fewer_heads(found)
    for name, value in changes.items():
        setattr(config, name, value)


def _one_of_each(kinds: list[tuple[Any, ...]], layers: int, most: int) -> list[int]:
    """The last layer of each kind, and of the others the last ones, as many as asked for."""
    last = {str(kind): layer for layer, kind in enumerate(kinds)}  # the first ones may be dense
    chosen = {*last.values()}
    for layer in reversed(range(layers)):
        if len(chosen) >= most:
            break
        chosen.add(layer)
    return sorted(chosen)


def _fewer_heads(found: dict[str, Any]) -> dict[str, int]:
    """One head for keys and values, its share of the others, and a width in proportion."""
    heads, width = found.get("num_attention_heads"), found.get("hidden_size")
    keys = found.get("num_key_value_heads", heads)
    if not heads or not width or heads % keys or width % heads:
        return {}
    changes = {"num_attention_heads": heads // keys, "hidden_size": width // keys}
    return changes | ({"num_key_value_heads": 1} if "num_key_value_heads" in found else {})
