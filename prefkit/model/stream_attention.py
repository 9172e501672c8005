"""Causal attention over a stream of trees, in memory that grows with its tokens alone.

No mask of queries × keys exists anywhere. Three ways to the same numbers:

- `varlen`: one variable-length call of flash-attn or of torch on a GPU; the keys of a trunk are
  gathered once for each tail, causal alignment at the bottom right.
- `flash_cpu`: torch's CPU flash kernel. A tail attends to its trunk in full and to itself causally,
  in two calls merged by their log-sum-exp. The backward runs both with the *merged* output and
  log-sum-exp, which gives each its exact part of the gradient (FlashAttention-2, arXiv 2307.08691,
  section 3.1.2: the gradient of a block of keys depends on the others through these two alone).
- `blockwise`: plain torch, a block of queries at a time, recomputed in the backward. Any device and
  dtype, and the only one here with a softcap (Gemma-2) on a CPU.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from prefkit.data.stream import Attend, Packed, Span, Stream, Tree

logger = logging.getLogger(__name__)

SCORES = 1 << 21  # scores of all heads at a time in `blockwise`; some ten buffers have this size
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(
    query: Tensor,  # (1, H, N, d)
    key: Tensor,  # (1, G, N, d)
    value: Tensor,  # (1, G, N, d)
    stream: Stream,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of every token to what its sequence holds before it, and to itself.

    Args:
        query, key, value: float tensors; H must be a multiple of G (grouped queries).
        stream: the trees of the N tokens.
        scale: factor of the scores; None = 1/√d.
        softcap: c of c·tanh(scores / c) (Gemma-2, arXiv 2408.00118, section 2), or None.
    Returns:
        (1, H, N, d), in query's dtype.
    Raises:
        ValueError: shapes that do not fit each other or the stream.
    """
    _check(query, key, value, stream)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        kernel = varlen_kernel(softcap is not None)
        heads, groups, width = query.shape[1], key.shape[1], query.shape[3]
        if kernel is not None and agrees(
            kernel, query.device, query.dtype, heads, groups, width, softcap
        ):
            return _varlen(kernel, query, key, value, stream, scale, softcap)
    if query.device.type == "cpu" and softcap is None and key.shape[-1] == value.shape[-1]:
        return _FlashCPU.apply(query, key, value, stream, scale)
    return _Blockwise.apply(query, key, value, stream, scale, softcap)


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


# -- one variable-length call on a GPU -------------------------------------------------------------

Kernel = Callable[[Tensor, Tensor, Tensor, Packed, float, float | None], Tensor]


@cache
def varlen_kernel(softcap: bool) -> Kernel | None:
    """flash-attn where installed, else torch's own (which has no softcap); None: neither."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None if softcap else _torch_varlen()

    def run(q: Tensor, k: Tensor, v: Tensor, p: Packed, scale: float, cap: float | None) -> Tensor:
        sizes = (p.cu_queries, p.cu_keys, p.max_queries, p.max_keys)
        capped = {"softcap": cap} if cap is not None else {}
        return flash_attn_varlen_func(q, k, v, *sizes, softmax_scale=scale, causal=True, **capped)

    return run


def _torch_varlen() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch < 2.10
        return None
    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {}
    if not causal:
        causal = {"is_causal": True}
    scaled, grouped = "scale" in known, "enable_gqa" in known

    def run(q: Tensor, k: Tensor, v: Tensor, p: Packed, scale: float, cap: float | None) -> Tensor:
        options = dict(causal)
        if scaled:
            options["scale"] = scale
        else:  # the kernel's own scale is 1/√d: fold ours into the queries
            q = q * (scale * math.sqrt(q.shape[-1]))
        groups = q.shape[1] // k.shape[1]
        if grouped:
            options["enable_gqa"] = groups > 1
        elif groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        sizes = (p.cu_queries, p.cu_keys, p.max_queries, p.max_keys)
        out = varlen_attn(q, k, v, *sizes, **options)
        assert isinstance(out, Tensor), "no log-sum-exp was asked for"
        return out

    return run


@cache
def agrees(
    kernel: Kernel,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    groups: int,
    width: int,
    softcap: float | None,
) -> bool:
    """Whether a kernel gives on this device what plain torch gives; tried once, on small trees."""
    stream = Stream((Tree(0, 17, (9, 40)), Tree(66, 5)))
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, heads, len(stream), width), *2 * ((1, groups, len(stream), width),))
    q, k, v = (torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes)
    scale = width**-0.5
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        want = _Blockwise.apply(q, k, v, stream, scale, softcap).float()
        try:
            got = _varlen(kernel, q, k, v, stream, scale, softcap).float()
            problem = None if bool((got - want).abs().max() < 0.05) else "computes something else"
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    if problem is not None:
        logger.warning(
            "The variable-length attention of this GPU is left aside (%s): plain torch takes its "
            "place, exact and slow.",
            problem,
        )
    return problem is None


def _varlen(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stream: Stream,
    scale: float,
    softcap: float | None,
) -> Tensor:
    packed = stream.packed(query.device)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, d)
    if len(packed.keys) != len(stream):  # some trunk is read twice
        k, v = k.index_select(0, packed.keys), v.index_select(0, packed.keys)
    out = kernel(q.contiguous(), k.contiguous(), v.contiguous(), packed, scale, softcap)
    return out.transpose(0, 1)[None]


# -- torch's flash kernel on a CPU -----------------------------------------------------------------


def _slice(x: Tensor, span: Span) -> Tensor:
    return x[:, :, span.start : span.stop]


def _heads(x: Tensor, groups: int) -> Tensor:
    """(1, G, n, d) → (1, G·groups, n, d): each key head once for every query head that reads it."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _add_heads(into: Tensor, span: Span, grad: Tensor, groups: int) -> None:
    """into[span] += the sum of grad over the query heads of each key head."""
    if groups > 1:
        grad = grad.unflatten(1, (-1, groups)).sum(2)
    _slice(into, span).add_(grad)


class _FlashCPU(torch.autograd.Function):
    """The whole stream as one node: slices of it would each cost a gradient of its full size."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, stream: Stream, scale: float
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        kind = torch.promote_types(query.dtype, torch.float32)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = query.new_empty(query.shape[:3], dtype=kind)  # (1, H, N)
        for one in stream.attends():
            q = _slice(query, one.queries)
            own = [_heads(_slice(x, one.queries), groups) for x in (key, value)]
            part, log_sum = _flash(q, *own, is_causal=True, scale=scale)
            if one.context is not None:
                seen = [_heads(_slice(x, one.context), groups) for x in (key, value)]
                before, log_before = _flash(q, *seen, is_causal=False, scale=scale)
                both = torch.logaddexp(log_sum, log_before)
                part = part * (log_sum - both).exp()[..., None]
                part = part + before * (log_before - both).exp()[..., None]
                log_sum = both
            _slice(out, one.queries).copy_(part)
            lse[:, :, one.queries.start : one.queries.stop] = log_sum
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.stream, ctx.scale = stream, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        groups = query.shape[1] // key.shape[1]
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key)]
        grads.append(torch.zeros_like(value, memory_format=torch.contiguous_format))
        for one in ctx.stream.attends():
            q, o, g = (_slice(x, one.queries) for x in (query, out, grad))
            log_sum = lse[:, :, one.queries.start : one.queries.stop]
            for span, causal in ((one.queries, True), (one.context, False)):
                if span is None:
                    continue
                seen = [_heads(_slice(x, span), groups) for x in (key, value)]
                dq, dk, dv = _flash_backward(g, q, *seen, o, log_sum, 0.0, causal, scale=ctx.scale)
                _slice(grads[0], one.queries).add_(dq)
                _add_heads(grads[1], span, dk, groups)
                _add_heads(grads[2], span, dv, groups)
        return *grads, None, None


# -- plain torch, a block of queries at a time -----------------------------------------------------


class _Blockwise(torch.autograd.Function):
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
            for one, block in _blocks(stream, query.shape[1]):
                places = _keys_of(one, block, query.device)
                k, v = key.index_select(2, places), value.index_select(2, places)
                _slice(out, block).copy_(_block(_slice(query, block), k, v, scale, softcap))
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
        for one, block in _blocks(stream, query.shape[1]):
            places = _keys_of(one, block, query.device)
            parts = [_slice(query, block), key.index_select(2, places)]
            parts.append(value.index_select(2, places))
            parts = [x.detach().requires_grad_() for x in parts]
            with torch.enable_grad():
                out = _block(*parts, scale, softcap)  # type: ignore[call-arg]
            dq, dk, dv = torch.autograd.grad(out, parts, _slice(grad, block))
            _slice(grads[0], block).add_(dq)
            grads[1].index_add_(2, places, dk.to(kind))
            grads[2].index_add_(2, places, dv.to(kind))
        return *(grad.to(query.dtype) for grad in grads), None, None, None


def _blocks(stream: Stream, heads: int) -> Iterator[tuple[Attend, Span]]:
    for one in stream.attends():
        size = min(max(SCORES // (heads * one.key_count), 16), 256)
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
