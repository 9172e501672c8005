"""Attention over a stream in plain torch, a block of queries at a time, recomputed in the backward.

Any device and dtype, and the only implementation here with a softcap (Gemma-2) on a CPU. In fp32 or
better whatever the operands are; what other kernels are compared with.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prefkit.data.batch.stream import Attend, Span, Stream

# Scores of all heads at a time, on a CPU: its caches are small. Some ten buffers have this size.
SCORES = 1 << 21
# The same on a GPU, in bytes (fp32): 16 million scores keep it busy for longer than it takes to
# start a kernel, and all buffers together stay below 1 GiB.
GPU_SCORE_BYTES = 64 << 20


def slice_of(x: Tensor, span: Span) -> Tensor:
    """(1, H, N, d) → its tokens of the span."""
    return x[:, :, span.start : span.stop]


class Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        stream: Stream,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        out = query.new_empty((*query.shape[:3], value.shape[-1]))
        with torch.autocast(query.device.type, enabled=False):  # it would round the products
            for one, block in _blocks(stream, query):
                places = _keys_of(one, block, query.device)
                k, v = key.index_select(2, places), value.index_select(2, places)
                slice_of(out, block).copy_(_block(slice_of(query, block), k, v, scale, softcap))
        ctx.save_for_backward(query, key, value)
        ctx.options = stream, scale, softcap
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        stream, scale, softcap = ctx.options
        # Hundreds of blocks add to one key's gradient: in fp32, or bf16 would lose most of them.
        kind = torch.promote_types(query.dtype, torch.float32)
        grads = [torch.zeros_like(x, dtype=kind) for x in (query, key, value)]
        for one, block in _blocks(stream, query):
            places = _keys_of(one, block, query.device)
            parts = [slice_of(query, block), key.index_select(2, places)]
            parts.append(value.index_select(2, places))
            parts = [x.detach().requires_grad_() for x in parts]
            with torch.enable_grad():
                out = _block(*parts, scale, softcap)  # type: ignore[call-arg]
            dq, dk, dv = torch.autograd.grad(out, parts, slice_of(grad, block))
            slice_of(grads[0], block).add_(dq)
            grads[1].index_add_(2, places, dk.to(kind))
            grads[2].index_add_(2, places, dv.to(kind))
        return *(grad.to(query.dtype) for grad in grads), None, None, None


def block_size(heads: int, keys: int, device: torch.device) -> int:
    """Queries of a block that has so many keys, by what the device can hold and keep busy with."""
    if device.type == "cpu":
        return min(max(SCORES // (heads * keys), 16), 256)
    # A block computes all its keys for its first query too: past 1024 queries that costs more than
    # the fewer kernels save.
    return min(max(GPU_SCORE_BYTES // (4 * heads * keys), 16), 1024)


def _blocks(stream: Stream, query: Tensor) -> Iterator[tuple[Attend, Span]]:
    for one in stream.attends():
        size = block_size(query.shape[1], one.key_count, query.device)
        for start in range(one.queries.start, one.queries.stop, size):
            yield one, Span(start, min(start + size, one.queries.stop))


def _keys_of(one: Attend, block: Span, device: torch.device) -> Tensor:
    """Places of the keys that the block's last query sees."""
    own = torch.arange(one.queries.start, block.stop, device=device)
    if one.context is None:
        return own
    return torch.cat([torch.arange(one.context.start, one.context.stop, device=device), own])


def _block(
    query: Tensor,  # (1, H, b, d)
    key: Tensor,  # (1, G, k, d)
    value: Tensor,  # (1, G, k, d')
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Attention of a block whose last query sees every key, in fp32 or better."""
    kind = torch.promote_types(query.dtype, torch.float32)
    queries, keys = query.shape[2], key.shape[2]
    grouped = query.to(kind).unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # (1, G, H/G·b, d)
    scores = (grouped @ key.to(kind).transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.unflatten(2, (-1, queries))  # (1, G, H/G, b, k)
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    scores = scores.masked_fill(hidden.triu_(keys - queries + 1), -torch.inf)
    out = scores.softmax(-1).flatten(2, 3) @ value.to(kind)  # (1, G, H/G·b, d')
    return out.unflatten(2, (-1, queries)).flatten(1, 2).to(query.dtype)
