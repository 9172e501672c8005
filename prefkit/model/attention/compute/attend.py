"""Causal attention over a stream of trees, in memory that grows with its tokens alone.

No mask of queries × keys exists anywhere. A window shortens each attention's context, chunks cut it
into several (`Stream.attends`). A sink (gpt-oss; arXiv 2309.17453) is one more key of no value: a
term in the log-sum-exp, by which the outputs shrink. Three implementations of the same result:

- one variable-length call on a GPU (`varlen_attention`, `flash_sinks`);
- torch's CPU flash kernel, here: a tail attends to its trunk in full and to itself causally, in two
  calls merged by their log-sum-exp. The backward runs both with the *merged* output and
  log-sum-exp, which gives each its exact part of the gradient (FlashAttention-2, arXiv 2307.08691,
  section 3.1.2: the gradient of a block of keys depends on the others through these two alone);
- plain torch everywhere else (`blockwise_attention`).
"""

import math
from typing import Any

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Reach, Span, Stream
from prefkit.model.attention.compute.blockwise import Blockwise, slice_of
from prefkit.model.attention.compute.sinks import gradient_of_sinks, sunk
from prefkit.model.attention.compute.varlen import Call, believed, varlen

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(
    query: Tensor,  # (1, H, N, d)
    key: Tensor,  # (1, G, N, d)
    value: Tensor,  # (1, G, N, d)
    stream: Stream,
    scale: float | None = None,
    softcap: float | None = None,
    reach: Reach = EVERYTHING,
    sinks: Tensor | None = None,  # (H,)
) -> Tensor:
    """Attention of every token to what its sequence holds before it, and to itself.

    Args:
        query, key, value: float tensors; H must be a multiple of G (grouped queries).
        stream: the trees of the N tokens.
        scale: factor of the scores; None = 1/√d.
        softcap: c of c·tanh(scores / c) (Gemma-2, arXiv 2408.00118, section 2), or None.
        reach: how far back a token sees.
        sinks: a score a query head that takes its share of the attention and gives nothing, or
            None; any float dtype.
    Returns:
        (1, H, N, d'), in query's dtype; d' is the width of value.
    Raises:
        ValueError: shapes that do not fit each other or the stream.
    """
    _check(query, key, value, stream)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    reach = reach.within(stream.longest)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        call = Call.of(query, key, value, softcap, reach, sinks)
        kernel = believed(query.device, query.dtype, call)
        if kernel is not None:
            return varlen(kernel, query, key, value, stream, scale, softcap, reach, sinks)
    equal = key.shape[-1] == value.shape[-1]
    if query.device.type == "cpu" and softcap is None and equal and reach.window is None:
        return _FlashCPU.apply(query, key, value, stream, scale, reach, sinks)
    return Blockwise.apply(query, key, value, stream, scale, softcap, reach, sinks)


def _check(query: Tensor, key: Tensor, value: Tensor, stream: Stream) -> None:
    if query.shape[0] != 1 or query.shape[2] != len(stream) or key.shape[2] != len(stream):
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} must be (1, heads, tokens, d) "
            f"with the {len(stream)} tokens of the stream"
        )
    if query.shape[1] % key.shape[1] or key.shape[1] != value.shape[1]:
        raise ValueError(
            f"{query.shape[1]} query heads cannot share {key.shape[1]} key and {value.shape[1]} "
            "value heads"
        )


def _heads(x: Tensor, groups: int) -> Tensor:
    """(1, G, n, d) → (1, G·groups, n, d): each key head once for every query head that reads it."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _add_heads(into: Tensor, span: Span, grad: Tensor, groups: int) -> None:
    """into[span] += the sum of grad over the query heads of each key head."""
    if groups > 1:
        grad = grad.unflatten(1, (-1, groups)).sum(2)
    slice_of(into, span).add_(grad)


class _FlashCPU(torch.autograd.Function):
    """The whole stream as one node: slices of it would each cost a gradient of its full size."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        stream: Stream,
        scale: float,
        reach: Reach = EVERYTHING,  # no window
        sinks: Tensor | None = None,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        kind = torch.promote_types(query.dtype, torch.float32)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = query.new_empty(query.shape[:3], dtype=kind)  # (1, H, N)
        for one in stream.attends(reach):
            q = slice_of(query, one.queries)
            own = [_heads(slice_of(x, one.queries), groups) for x in (key, value)]
            part, log_sum = _flash(q, *own, is_causal=True, scale=scale)
            if one.context is not None:
                seen = [_heads(slice_of(x, one.context), groups) for x in (key, value)]
                before, log_before = _flash(q, *seen, is_causal=False, scale=scale)
                both = torch.logaddexp(log_sum, log_before)
                part = part * (log_sum - both).exp()[..., None]
                part = part + before * (log_before - both).exp()[..., None]
                log_sum = both
            slice_of(out, one.queries).copy_(part)
            lse[:, :, one.queries.start : one.queries.stop] = log_sum
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
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key)]
        grads.append(torch.zeros_like(value, memory_format=torch.contiguous_format))
        for one in stream.attends(reach):
            q, o, g = (slice_of(x, one.queries) for x in (query, out, grad))
            log_sum = lse[:, :, one.queries.start : one.queries.stop]
            for span, causal in ((one.queries, True), (one.context, False)):
                if span is None:
                    continue
                seen = [_heads(slice_of(x, span), groups) for x in (key, value)]
                dq, dk, dv = _flash_backward(g, q, *seen, o, log_sum, 0.0, causal, scale=scale)
                slice_of(grads[0], one.queries).add_(dq)
                _add_heads(grads[1], span, dk, groups)
                _add_heads(grads[2], span, dv, groups)
        more = None if sinks is None else gradient_of_sinks(grad, out, lse, sinks)
        return *grads, None, None, None, more
