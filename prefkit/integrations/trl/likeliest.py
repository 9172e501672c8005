"""Two things that only metrics read: is the target the likeliest token, and the mean logit."""

import torch
from torch import Tensor

from prefkit.model.head.transform import LogitTransform

_TOKENS = 256  # whose logits are there at a time


@torch.no_grad()
def likeliest(
    hidden: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    targets: Tensor,  # (N,)
    transform: LogitTransform,
) -> tuple[Tensor, Tensor]:
    """(N,) bool, whether the target is the likeliest token; (N,) fp32 mean over V of its logits."""
    right, means = [], []
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(hidden), _TOKENS):
            here = slice(start, start + _TOKENS)
            logits = hidden[here].to(weight.dtype) @ weight.T
            logits = transform((logits if bias is None else logits + bias).float())
            right.append(logits.argmax(-1) == targets[here])
            means.append(logits.mean(-1))
    return torch.cat(right), torch.cat(means)
