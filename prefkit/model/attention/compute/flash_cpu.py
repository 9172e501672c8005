"""Attention over a stream with torch's CPU flash kernel: pieces, merged by their log-sum-exp.

A long run of tokens attends to the path before it in full and to itself causally, in two calls.
Short branches take one call together, under a small mask (`short_branches`). With a window, so many
queries at a time attend to themselves causally, and to the keys just before them under a small
mask. The backward runs each call with the *merged* output and log-sum-exp, which gives it its exact
part of the gradient (FlashAttention-2, arXiv 2307.08691, section 3.1.2: the gradient of a block of
keys depends on the others through these two alone).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Attend, Reach, Span, Stream, last_of
from prefkit.model.attention.compute.blockwise import slice_of
from prefkit.model.attention.compute.short_branches import together, tree_mask
from prefkit.model.attention.compute.sinks import gradient_of_sinks, sunk

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_QUERIES = 512  # of a window at a time: the keys before them are read once for all
LEAST_WINDOW = 16  # narrower ones have more overhead than keys


class _Call(NamedTuple):
    """One call of the kernel for some queries.

    Attributes:
        keys: spans of keys, which follow each other in the call.
        causal: query j sees the first j + 1 of them.
        mask: (queries, keys) float, 0 or −inf; None = nothing more is hidden.
    """

    keys: tuple[Span, ...]
    causal: bool
    mask: Tensor | None


class _Piece(NamedTuple):
    """Queries that follow each other in the row, and the one or two calls that read all their keys.

    Every query sees a key in the first call.
    """

    queries: Span
    calls: tuple[_Call, ...]


class FlashCPU(torch.autograd.Function):
    """The whole stream as one node: slices of it would each cost a gradient of its full size."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        stream: Stream,
        scale: float,
        reach: Reach = EVERYTHING,
        sinks: Tensor | None = None,
    ) -> Tensor:
        # The operator believes that the numbers of a head follow each other.
        query, key, value = (
            x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)
        )
        groups = query.shape[1] // key.shape[1]
        kind = torch.promote_types(query.dtype, torch.float32)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = query.new_empty(query.shape[:3], dtype=kind)  # (1, H, N)
        for piece in _pieces(stream, reach, query.dtype):
            q = slice_of(query, piece.queries)
            found = []
            for spans, causal, mask in piece.calls:
                seen = [_heads(_joined(x, spans), groups) for x in (key, value)]
                found.append(_flash(q, *seen, is_causal=causal, attn_mask=mask, scale=scale))
            part, log_sum = found[0]
            for more, log_more in found[1:]:
                both = torch.logaddexp(log_sum, log_more)
                part = part * (log_sum - both).exp()[..., None]
                part = part + more * (log_more - both).exp()[..., None]
                log_sum = both
            slice_of(out, piece.queries).copy_(part)
            lse[:, :, piece.queries.start : piece.queries.stop] = log_sum
        if sinks is not None:
            out, lse = sunk(out, lse, sinks)
        ctx.save_for_backward(query, key, value, out, lse, sinks)
        ctx.options = stream, scale, reach
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, sinks = ctx.saved_tensors
        stream, scale, reach = ctx.options
        groups = query.shape[1] // key.shape[1]
        # A key gets a part from each piece that sees it: in fp32, or bf16 would lose some.
        kind = torch.promote_types(query.dtype, torch.float32)
        grads = [
            torch.zeros_like(x, dtype=kind, memory_format=torch.contiguous_format)
            for x in (query, key, value)
        ]
        for piece in _pieces(stream, reach, query.dtype):
            q, o, g = (slice_of(x, piece.queries) for x in (query, out, grad))
            log_sum = lse[:, :, piece.queries.start : piece.queries.stop]
            for spans, causal, mask in piece.calls:
                seen = [_heads(_joined(x, spans), groups) for x in (key, value)]
                dq, dk, dv = _flash_backward(
                    g, q, *seen, o, log_sum, 0.0, causal, attn_mask=mask, scale=scale
                )
                slice_of(grads[0], piece.queries).add_(dq)
                _add_heads(grads[1], spans, dk, groups)
                _add_heads(grads[2], spans, dv, groups)
        more = None if sinks is None else gradient_of_sinks(grad, out, lse, sinks)
        return *(total.to(query.dtype) for total in grads), None, None, None, more


def _pieces(stream: Stream, reach: Reach, dtype: torch.dtype) -> Iterator[_Piece]:
    for queries, keys, alone in stream.once(together, reach):
        if alone is None:
            mask = tree_mask(stream, queries, keys, reach, dtype)
            yield _Piece(queries, (_Call(keys, False, mask),))
        elif reach.window is not None:
            yield from _windowed(alone, reach.window, dtype)
        else:
            calls = [_Call((queries,), True, None)]
            calls += [_Call(alone.context, False, None)] if alone.context else []
            yield _Piece(queries, tuple(calls))


def _windowed(one: Attend, window: int, dtype: torch.dtype) -> Iterator[_Piece]:
    """Pieces of one attention whose last query still sees a key before them."""
    size = min(window - 1, _QUERIES)
    for start in range(one.queries.start, one.queries.stop, size):
        queries = Span(start, min(start + size, one.queries.stop))
        own = Span(max(one.queries.start, start - window + 1), start)
        rest = last_of(one.context, window - 1 - len(own))
        before = (*rest, own) if len(own) else rest
        keys = sum(map(len, before))
        # Query j does not see the j first of the window − 1 keys that could be before it.
        hidden = torch.ones(len(queries), window - 1).tril(-1)[:, window - 1 - keys :]
        mask = hidden.to(dtype).masked_fill(hidden.bool(), -torch.inf) if hidden.any() else None
        calls = [_Call((queries,), True, None)]
        calls += [_Call(before, False, mask)] if before else []
        yield _Piece(queries, tuple(calls))


def _joined(x: Tensor, spans: tuple[Span, ...]) -> Tensor:
    parts = [slice_of(x, span) for span in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _heads(x: Tensor, groups: int) -> Tensor:
    """(1, G, n, d) → (1, G·groups, n, d): each key head once for every query head that reads it."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _add_heads(into: Tensor, spans: tuple[Span, ...], grad: Tensor, groups: int) -> None:
    """into[spans] += the sum of grad over the query heads of each key head."""
    if groups > 1:
        grad = grad.unflatten(1, (-1, groups)).sum(2)
    for span, part in zip(spans, grad.split([len(span) for span in spans], 2), strict=True):
        slice_of(into, span).add_(part)
