"""Whether an adapter was ever trained, told by its weights: one that was not changes nothing.

What a few logits show is no proof: an adapter may change only tokens that are not among them, or
move logits by little beside a large offset that they share.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def is_untouched(model: Any) -> bool:
    """Whether the adapters in use leave the model exactly what it is without them.

    Known are LoRA with its like (DoRA, AdaLoRA, of embeddings and of parameters), modules_to_save
    and trainable tokens.

    Args:
        model: a PEFT model whose weights are here.

    Returns:
        False also for what the weights do not tell: an adapter of any other kind, or magnitudes
        that were rounded on another device.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.integrations import gather_params_ctx
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    parts: list[Any] = [part for part in model.modules() if isinstance(part, kinds)]
    for part in parts:
        rule = _rule_of(part)
        if rule is None:
            return False
        with gather_params_ctx(part.parameters()):
            if not all(rule(part, name) for name in part.active_adapters):
                return False
    return bool(parts)


def _rule_of(part: nn.Module) -> Callable[[Any, str], bool] | None:
    """How to tell of a part of an adapter; None where it is of an unknown kind."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    rules: dict[type, Callable[[Any, str], bool]] = {
        LoraLayer: _no_product,
        TrainableTokensLayer: _same_tokens,
        TrainableTokensWrapper: lambda part, name: True,  # its layer, a part of its own, tells
        ModulesToSaveWrapper: _same_module,
    }
    return next((rule for kind, rule in rules.items() if isinstance(part, kind)), None)


def _no_product(layer: Any, name: str) -> bool:
    """Whether B·A is 0 (with AdaLoRA's E between them), and DoRA's magnitudes are the weight's."""
    magnitudes = layer.lora_magnitude_vector
    if name in getattr(layer, "lora_variant", {}) and name not in magnitudes:
        return False
    if name in getattr(layer, "lora_E", {}):
        return _is_zero(layer.lora_E[name])
    if name in layer.lora_B and not _is_zero(layer.lora_B[name]):
        return False
    if name in layer.lora_embedding_A:  # there A begins as 0
        factors = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
        if not any(map(_is_zero, factors)):
            return False
    return name not in magnitudes or _as_the_weight(layer, magnitudes[name])


def _is_zero(factor: nn.Module | Tensor) -> bool:
    values = [factor] if isinstance(factor, Tensor) else list(factor.parameters())
    return not any(bool(value.detach().any()) for value in values)


def _as_the_weight(layer: Any, magnitudes: Any) -> bool:
    """Whether DoRA's magnitudes are the norms of the base weight, as PEFT begins with."""
    from peft.utils.integrations import dequantize_module_weight

    weight = dequantize_module_weight(layer.get_base_layer()).detach()
    # PEFT rounds them to the dtype of weight and factors together.
    kinds = {weight.dtype, torch.promote_types(weight.dtype, torch.float32)}
    zero = torch.zeros((), device=weight.device)
    norms = [magnitudes.get_weight_norm(weight.to(kind), zero.to(kind), 1) for kind in kinds]
    return any(_equal(magnitudes.weight, norm) for norm in norms)


def _same_tokens(layer: Any, name: str) -> bool:
    originals = layer.trainable_tokens_original
    if name not in originals:
        return True
    return _equal(layer.trainable_tokens_delta[name], originals[name])


def _same_module(wrapper: Any, name: str) -> bool:
    if name not in wrapper.modules_to_save:
        return True
    before = dict(wrapper.original_module.named_parameters())
    now = dict(wrapper.modules_to_save[name].named_parameters())
    return now.keys() == before.keys() and all(_equal(now[key], before[key]) for key in now)


def _equal(one: Tensor, other: Tensor) -> bool:
    kind = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(one.detach().to(kind), other.detach().to(one.device, kind))
