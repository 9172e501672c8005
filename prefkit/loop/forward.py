"""One forward of a model with the head fused into it: a batch in, the request's own result out."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from prefkit.errors import ModelError
from prefkit.model.attention.install import reading
from prefkit.model.head.fused import Balance, Head, Request, RequestOutput


def ask_head(
    model: nn.Module,
    inputs: Mapping[str, Any],
    request: Request,
    head: Head,
    balance: Balance | None = None,
) -> RequestOutput:
    """Runs the model on a batch and the request on the operands of its head.

    Args:
        model: the wrapped model, in whose `forward` the head was installed.
        inputs: a batch of one of the collators, on the device.
        request: gets hidden states and the head's weight and bias.
        head: the installed head, for messages.
        balance: gets the routers' outputs of a mixture of experts; what it makes is added.

    Raises:
        ModelError: the forward formed logits, because it was replaced after the installation.
    """
    more = {} if balance is None else {"output_router_logits": True, "prefkit_balance": balance}
    with reading(inputs) as model_inputs:
        output = model(**model_inputs, **more, prefkit_request=request)
    if getattr(output, "value", None) is None:
        raise ModelError(
            f"{type(head.owner).__name__}'s forward was replaced after the fused head was put into "
            "it (by another library's patch?), so it formed logits instead. Apply such patches "
            "before the trainer is made or prefkit.install is called, or leave them out."
        )
    return output
