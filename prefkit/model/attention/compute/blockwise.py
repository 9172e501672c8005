"""Attention over a stream in plain torch, a block of queries at a time, recomputed in the backward.

Any device and dtype, and the only implementation here with a softcap (Gemma-2) or a window on a
CPU. In fp32 or better whatever the operands are; what other kernels are compared with.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Attend, Reach, Span, Stream

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
        reach: Reach = EVERYTHING,
        sinks: Tensor | None = None,  # (H,)
    ) -> Tensor:
        out = query.new_empty((*query.shape[:3], value.shape[-1]))
        with torch.autocast(query.device.type, enabled=False):  # it would round the products
            for one, block in _blocks(stream, query, reach):
                places = _keys_of(one, block, query.device, reach.window)
                parts = [key.index_select(2, places), value.index_select(2, places), sinks]
                part = _block(slice_of(query, block), *parts, scale, softcap, reach.window)  # type: ignore[arg-type, call-arg]
                slice_of(out, block).copy_(part)
        ctx.save_for_backward(query, key, value, sinks)
        ctx.options = stream, scale, softcap, reach
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks = ctx.saved_tensors
        stream, scale, softcap, reach = ctx.options
        # Hundreds of blocks add to one key's gradient: in fp32, or bf16 would lose most of them.
        kind = torch.promote_types(query.dtype, torch.float32)
        whole = [x for x in (query, key, value, sinks) if x is not None]
        grads = [torch.zeros_like(x, dtype=kind) for x in whole]
        for one, block in _blocks(stream, query, reach):
            places = _keys_of(one, block, query.device, reach.window)
            parts = [slice_of(query, block), key.index_select(2, places)]
            parts += [value.index_select(2, places), *whole[3:]]
            parts = [x.detach().requires_grad_() for x in parts]
            sink = parts[3] if sinks is not None else None
            with torch.autocast(query.device.type, enabled=False):
                with torch.enable_grad():
                    out = _block(*parts[:3], sink, scale, softcap, reach.window)  # type: ignore[call-arg]
                dq, dk, dv, *ds = torch.autograd.grad(out, parts, slice_of(grad, block))
            slice_of(grads[0], block).add_(dq)
            grads[1].index_add_(2, places, dk.to(kind))
            grads[2].index_add_(2, places, dv.to(kind))
            for total, more in zip(grads[3:], ds, strict=True):
                total.add_(more)
        back = [total.to(x.dtype) for total, x in zip(grads, whole, strict=True)]
        of_sinks = back[3] if sinks is not None else None
        return *back[:3], None, None, None, None, of_sinks


def block_size(heads: int, keys: int, device: torch.device) -> int:
    """Queries of a block that has so many keys, by what the device can hold and keep busy with."""
    if device.type == "cpu":
        return min(max(SCORES // (heads * keys), 16), 256)
    # A block computes all its keys for its first query too: past 1024 queries that costs more than
    # the fewer kernels save.
    return min(max(GPU_SCORE_BYTES // (4 * heads * keys), 16), 1024)


def _blocks(stream: Stream, query: Tensor, reach: Reach) -> Iterator[tuple[Attend, Span]]:
    for one in stream.attends(reach):
        keys = one.key_count
        if reach.window is not None:  # as many again as the block itself has, at most
            keys = min(keys, 2 * reach.window)
        size = block_size(query.shape[1], keys, query.device)
        if reach.window is not None:
            size = min(size, max(reach.window, 16))
        for start in range(one.queries.start, one.queries.stop, size):
            yield one, Span(start, min(start + size, one.queries.stop))


def _keys_of(one: Attend, block: Span, device: torch.device, window: int | None) -> Tensor:
    """Places of the keys from the first that the block's first query sees to its last token."""
    spans = (*one.context, Span(one.queries.start, block.stop))
    keys = torch.cat([torch.arange(span.start, span.stop, device=device) for span in spans])
    return keys if window is None else keys[-(window + len(block) - 1) :]


def _block(
    query: Tensor,  # (1, H, b, d)
    key: Tensor,  # (1, G, k, d)
    value: Tensor,  # (1, G, k, d')
    sinks: Tensor | None,  # (H,)
    scale: float,
    softcap: float | None,
    window: int | None = None,
) -> Tensor:
    """Attention of a block whose last query sees every key in its window, in fp32 or better."""
    kind = torch.promote_types(query.dtype, torch.float32)
    queries, keys = query.shape[2], key.shape[2]
    grouped = query.to(kind).unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # (1, G, H/G·b, d)
    scores = (grouped @ key.to(kind).transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.unflatten(2, (-1, queries))  # (1, G, H/G, b, k)
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    last = keys - queries  # the first query's own key
    if window is None:
        hidden = hidden.triu_(last + 1)
    else:
        hidden = hidden.triu(last + 1) | hidden.tril(last - window)
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is None:
        shares = scores.softmax(-1)
    else:  # one key more, of no value
        sink = sinks.to(kind).view(1, key.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1)
        shares = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    out = shares.flatten(2, 3) @ value.to(kind)  # (1, G, H/G·b, d')
    return out.unflatten(2, (-1, queries)).flatten(1, 2).to(query.dtype)
