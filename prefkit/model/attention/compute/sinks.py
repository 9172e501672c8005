"""Attention sinks: a score a head that takes a share of the attention and gives nothing for it.

gpt-oss (arXiv 2508.10925) and others add exp(s) to the denominator of the softmax:

    out' = Σ_k exp(z_k) v_k / (Σ_k exp(z_k) + exp(s)) = out · exp(lse − lse'),
    lse' = log(exp(lse) + exp(s))

So any attention that tells its log-sum-exp can have sinks. Its backward, handed out' and lse',
gives the gradients of q, k and v as they are with the sink: these two are all it reads of the other
keys (FlashAttention-2, arXiv 2307.08691, section 3.1.2). The gradient of s is the sum over queries
of −exp(s − lse') · (g · out'), g being the gradient of out'.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefkit.data.batch.stream import Packed


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


class Flash(NamedTuple):
    """A variable-length kernel with its log-sum-exp and its backward, as torch has them.

    Attributes:
        forward: (q, k, v, packed, scale) → out (N, H, d), lse (H, N), whatever backward wants.
        backward: (grad, q, k, v, out, lse, packed, scale, that) → gradients of q, k, v.
    """

    forward: Any
    backward: Any


def _forward(q: Tensor, k: Tensor, v: Tensor, p: Packed, scale: float) -> tuple[Tensor, ...]:
    out, lse, *state = torch.ops.aten._flash_attention_forward(
        q, k, v, p.cu_queries, p.cu_keys, p.max_queries, p.max_keys, 0.0, True, False,
        scale=scale, **_window(p),
    )  # fmt: skip
    return out, lse, *state[:2]


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, p: Packed,
    scale: float, state: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:  # fmt: skip
    grads: tuple[Tensor, ...] = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, p.cu_queries, p.cu_keys, p.max_queries, p.max_keys, 0.0, True,
        *state, scale=scale, **_window(p),
    )  # fmt: skip
    return grads


def _window(p: Packed) -> dict[str, int]:
    return {} if p.window is None else {"window_size_left": p.window - 1, "window_size_right": 0}


TORCH = Flash(_forward, _backward)


class FlashSinks(torch.autograd.Function):
    """Variable-length attention with sinks: (N, H, d), (K, G, d), (K, G, d), (H,) → (N, H, d)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, p: Packed, scale: float,
        flash: Flash,
    ) -> Tensor:  # fmt: skip
        out, lse, *state = flash.forward(q, k, v, p, scale)
        if lse.shape != (q.shape[1], q.shape[0]):
            raise ValueError(f"a log-sum-exp of shape {tuple(lse.shape)}, not (heads, tokens)")
        out, lse = sunk(out.transpose(0, 1), lse, sinks)  # (H, N, d)
        out = out.transpose(0, 1).contiguous()
        ctx.save_for_backward(q, k, v, sinks, out, lse, *state)
        ctx.options = p, scale, flash
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, lse, *state = ctx.saved_tensors
        p, scale, flash = ctx.options
        grad = grad.contiguous()
        grads = flash.backward(grad, q, k, v, out, lse, p, scale, tuple(state))
        more = gradient_of_sinks(grad.transpose(0, 1), out.transpose(0, 1), lse, sinks)
        return *grads, more, None, None, None
