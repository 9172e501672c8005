"""Attention over a stream as one variable-length call on a GPU, tried before it is believed.

flash-attn where it is installed, else torch's own. The keys of a trunk are gathered once for each
tail; the causal alignment is at the bottom right.
"""

import inspect
import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from prefkit.data.stream import Packed, Stream, Tree
from prefkit.model.blockwise_attention import Blockwise

logger = logging.getLogger(__name__)

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
        want = Blockwise.apply(q, k, v, stream, scale, softcap).float()
        try:
            got = varlen(kernel, q, k, v, stream, scale, softcap).float()
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


def varlen(
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
