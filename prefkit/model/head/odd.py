"""Heads that cannot be fused, told by their looks: what a forward shows is in `transform`."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from prefkit.errors import ModelError


def refuse_odd_head(module: nn.Module, name: str) -> None:
    """Refuses a head that its type or its weight shows to be no plain linear layer.

    Args:
        module: the head, or one of `layers_of`.
        name: of the model's class, for the message.

    Raises:
        ModelError: an adapter on the head, no (vocabulary, width) weight, quantised weights.
    """
    kind = type(module).__name__
    if type(module).__module__.startswith("peft.") or hasattr(module, "base_layer"):
        raise ModelError(
            f"{name}: the head is wrapped by an adapter ({kind}), which the fused head cannot see. "
            "Remove the head (usually 'lm_head') from target_modules; modules_to_save may have it."
        )
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or len(whole_shape(weight)) != 2:
        raise ModelError(
            f"{name}: the head is a {kind}, not a linear layer with one (vocabulary, width) weight."
            " Only linear heads can be fused; use a trainer that forms the logits instead."
        )
    # A packed tensor of torchao claims to be of the dtype that it was made from.
    packed = is_traceable_wrapper_subclass(weight) and not isinstance(weight, DTensor)
    if packed or not weight.is_floating_point():
        what = type(weight).__name__ if packed else weight.dtype
        raise ModelError(
            f"{name}: the head is quantised ({kind}, {what}). Keep the head out of the "
            "quantisation (modules_to_not_convert=['lm_head'] of TorchAoConfig, "
            "llm_int8_skip_modules=['lm_head'] of BitsAndBytesConfig) or load the model "
            "unquantised."
        )


def whole_shape(weight: Tensor) -> tuple[int, ...]:
    """The shape of a weight, of which this process may hold a part."""
    return tuple(getattr(weight, "ds_shape", weight.shape))  # ZeRO-3 leaves (0,) of it
