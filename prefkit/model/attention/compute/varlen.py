"""Attention over a stream as one variable-length call on a GPU, tested before it is used.

flash-attn where it is installed, else torch's own; before torch has `enable_gqa`, first with
grouped heads as they are, then with keys and values repeated. Each form is used after its output
and its gradients have been compared with plain torch's. The keys of a trunk are gathered once for
each tail; the causal alignment is at the bottom right.
"""

import inspect
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from prefkit.data.batch.stream import Packed, Stream, Tree
from prefkit.model.attention.compute.blockwise import Blockwise
from prefkit.model.attention.compute.gathered_keys import gathered

logger = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Packed, float, float | None], Tensor]


@cache
def varlen_kernels(softcap: bool, grouped: bool) -> tuple[Kernel, ...]:
    """Ways to one variable-length call, the best first; none where neither library is there.

    Args:
        softcap: scores are capped, which torch's own cannot.
        grouped: several query heads share a key head.
    """
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        if softcap:
            return ()
        ways = [_torch_varlen(repeat=False), _torch_varlen()] if grouped else [_torch_varlen()]
        return tuple(way for way in ways if way is not None)

    def run(q: Tensor, k: Tensor, v: Tensor, p: Packed, scale: float, cap: float | None) -> Tensor:
        sizes = (p.cu_queries, p.cu_keys, p.max_queries, p.max_keys)
        capped = {"softcap": cap} if cap is not None else {}
        return flash_attn_varlen_func(q, k, v, *sizes, softmax_scale=scale, causal=True, **capped)

    return (run,)


def varlen_kernel(softcap: bool) -> Kernel | None:
    """The best form for as many key heads as query heads, not yet tried; None: there is none."""
    return next(iter(varlen_kernels(softcap, False)), None)


def _torch_varlen(repeat: bool = True) -> Kernel | None:
    """torch's own call by the names that this version knows.

    Args:
        repeat: give each query head keys and values of its own where the version has no word for
            grouped heads. The kernel below may take them all the same, with a part of the memory.
    """
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
        elif groups > 1 and repeat:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        sizes = (p.cu_queries, p.cu_keys, p.max_queries, p.max_keys)
        out = varlen_attn(q, k, v, *sizes, **options)
        assert isinstance(out, Tensor), "no log-sum-exp was asked for"
        return out

    return run


@cache
def believed(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    groups: int,
    width: int,
    softcap: float | None,
) -> Kernel | None:
    """The first form that agrees with plain torch on this device, or None; tried once.

    Args:
        heads, groups, width: query heads, key heads, and numbers of each.
    """
    ways = varlen_kernels(softcap is not None, heads != groups)
    for place, kernel in enumerate(ways):
        last = place == len(ways) - 1
        instead = PLAIN if last else "keys and values are repeated for each query head"
        if agrees(kernel, device, dtype, heads, groups, width, softcap, instead):
            return kernel
    return None


PLAIN = "plain torch takes its place, exact and slow"


@cache
def agrees(
    kernel: Kernel,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    groups: int,
    width: int,
    softcap: float | None,
    instead: str = PLAIN,
) -> bool:
    """Whether a kernel gives on this device what plain torch gives; tried once, on small trees.

    Output and gradients of q, k and v are compared, each by its largest value.
    """
    # A thread of its own: what surrounds a model's forward (no gradient, inference mode, autocast,
    # the hooks with which activation checkpointing counts tensors) is kept by thread.
    with ThreadPoolExecutor(1) as apart:
        problem = apart.submit(
            _problem, kernel, device, dtype, heads, groups, width, softcap
        ).result()
    if problem is not None:
        logger.warning(
            "The variable-length attention of this GPU is left aside (%s): %s.", problem, instead
        )
    return problem is None


def _problem(
    kernel: Kernel,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    groups: int,
    width: int,
    softcap: float | None,
) -> str | None:
    """What a kernel does otherwise than plain torch, in words, or None."""
    # Three tails of one trunk, so that a key's gradient has more than two parts.
    stream = Stream((Tree(0, 17, (9, 40, 3)), Tree(69, 5)))
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, heads, len(stream), width), *2 * ((1, groups, len(stream), width),))
    operands = [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]
    direction = torch.randn(shapes[0], generator=draw).to(device, dtype)
    scale = width**-0.5

    def values(run: Callable[..., Tensor]) -> list[Tensor]:
        inputs = [x.detach().requires_grad_() for x in operands]
        out = run(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, direction)]

    try:
        wants = values(lambda q, k, v: Blockwise.apply(q, k, v, stream, scale, softcap))
        gots = values(lambda q, k, v: varlen(kernel, q, k, v, stream, scale, softcap))
        # A product of two numbers of this dtype is rounded a few times on its way into a sum: twice
        # eps for the output, four times for gradients, which go through more products.
        eps = max(torch.finfo(dtype).eps, 1e-5)
        names = ("output", "gradient of q", "gradient of k", "gradient of v")
        for name, got, want in zip(names, gots, wants, strict=True):
            off = float((got.float() - want.float()).abs().max() / want.float().abs().max())
            limit = (2 if name == "output" else 4) * eps
            if not off < limit:
                return f"{name} off by {off:.1e} of its largest value, limit {limit:.1e}"
    except (AssertionError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def varlen(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stream: Stream,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """One call of the kernel: operands and result as in `stream_attention.attend`."""
    packed = stream.packed(query.device)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, d)
    if len(packed.keys) != len(stream):  # some trunk is read twice
        k, v = gathered(k, stream), gathered(v, stream)
    out = kernel(q.contiguous(), k.contiguous(), v.contiguous(), packed, scale, softcap)
    return out.transpose(0, 1)[None]
