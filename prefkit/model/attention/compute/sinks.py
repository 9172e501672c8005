"""Attention sinks: a score a head that takes a share of the attention and gives nothing for it.

gpt-oss (arXiv 2508.10925) and others add exp(s) to the denominator of the softmax:

    out' = Σ_k exp(z_k) v_k / (Σ_k exp(z_k) + exp(s)) = out · exp(lse − lse'),
    lse' = log(exp(lse) + exp(s))

So any attention that tells its log-sum-exp can have sinks. Its backward, handed out' and lse',
gives the gradients of q, k and v as they are with the sink: these two are all it reads of the other
keys (FlashAttention-2, arXiv 2307.08691, section 3.1.2). The gradient of s is the sum over queries
of −exp(s − lse') · (g · out'), g being the gradient of out'.
"""

import torch
from torch import Tensor


def sunk(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """out' and lse' of the module docstring.

    Args:
        out: (..., H, N, d).
        lse: (..., H, N), at least fp32.
        sinks: (H,).
    """
    both = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    return (out * (lse - both).exp()[..., None]).to(out.dtype), both


def gradient_of_sinks(grad: Tensor, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """(H,) from the gradient of out', and out' and lse' themselves."""
    share = (sinks.to(lse.dtype)[:, None] - lse).exp()  # (..., H, N)
    total = share * (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1)
    return -total.sum(-1).reshape(-1, len(sinks)).sum(0).to(sinks.dtype)
