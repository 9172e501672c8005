"""Dropout and noise of a model's own, switched off: policy and reference then differ by training.

With dropout on, the two sides of a pair and the two models are compared under different masks, and
the first step has rewards already. TRL and the papers switch it off as well.
"""

import functools
import inspect
import re
from typing import Any

from torch import nn

from prefkit.errors import ModelError

# Factors by which routers of experts jitter what they are given, in training alone. Not Phi-MoE's
# router_jitter_noise: it is a threshold, of evaluation as well.
_NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
_OF_CONFIG = re.compile(r"\bself\.config\.(\w*drop\w*)")


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout of the model to zero, an adapter's own (`lora_dropout`, …) excepted.

    All kinds: Dropout modules, the rates (attention_dropout, hidden_dropout, layerdrop, …) that
    functions read from the module that holds them, and the noise of routers.

    Raises:
        ModelError: a rate above 0 that a forward reads from the config (Falcon, Persimmon), which
            stays as it is because it is saved with the model.
    """
    kept = _of_adapters(model)
    for module in model.modules():
        if module in kept:
            continue
        _refuse_rates_of_config(module)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or name in _NOISE):
                setattr(module, name, 0.0)


def _of_adapters(model: nn.Module) -> set[nn.Module]:
    """The dropouts that layers of PEFT hold beside the layer they wrap."""
    return {
        part
        for layer in model.modules()
        if hasattr(layer, "adapter_layer_names")
        for name, child in layer.named_children()
        if name.endswith("dropout")
        for part in child.modules()
    }


def _refuse_rates_of_config(module: nn.Module) -> None:
    config: Any = getattr(module, "config", None)
    for name in _rates_of_config(type(module)):  # type: ignore[arg-type]  # classes have hashes
        if rate := getattr(config, name, None):
            raise ModelError(
                f"{type(module).__name__} reads its {name} of {rate} from the config in every "
                f"forward, so disable_dropout cannot switch it off. Load the model with {name}=0, "
                "or set disable_dropout: false."
            )


@functools.cache
def _rates_of_config(kind: type[nn.Module]) -> frozenset[str]:
    try:
        return frozenset(_OF_CONFIG.findall(inspect.getsource(kind.forward)))
    except (OSError, TypeError):
        return frozenset()
