"""Attention over a stream as one variable-length call on a GPU, tested before it is used.

flash-attn where it is installed, else torch's own; before torch has `enable_gqa`, first with
grouped heads as they are, then with keys and values repeated. Each form is used after its output
and its gradients have been compared with plain torch's. Keys are gathered once for each branch
that reads them; the causal alignment is at the bottom right. Values narrower than keys (multi-head
latent attention) get zeros up to their width: these kernels know one width.
"""

import inspect
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Packed, Reach, Stream
from prefkit.model.attention.compute.blockwise import Blockwise
from prefkit.model.attention.compute.gathered_keys import gathered
from prefkit.model.attention.compute.sinks import TORCH, Flash, FlashSinks

logger = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Packed, float, float | None], Tensor]


class Call(NamedTuple):
    """What distinguishes the calls that a kernel is tried for.

    Attributes:
        heads, groups: query heads, key heads.
        width, value_width: numbers of each query and key, and of each value.
        softcap: of the scores, or None.
        windowed: some keys before a query are too far back.
        sinks: heads have sinks.
    """

    heads: int
    groups: int
    width: int
    value_width: int
    softcap: float | None = None
    windowed: bool = False
    sinks: bool = False

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        softcap: float | None,
        reach: Reach,
        sinks: Tensor | None,
    ) -> "Call":
        """Of operands (1, heads, N, width)."""
        sizes = query.shape[1], key.shape[1], query.shape[3], value.shape[3]
        return cls(*sizes, softcap, reach.window is not None, sinks is not None)


@cache
def varlen_kernels(call: Call) -> tuple[Kernel | Flash, ...]:
    """Ways to one variable-length call, the best first; none where neither library is there.

    Sinks need the log-sum-exp and torch's own backward, which know no softcap.
    """
    if call.sinks:
        return () if call.softcap is not None else (TORCH,)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        if call.softcap is not None:
            return ()
        grouped = call.heads != call.groups
        ways = [_torch_varlen(repeat=False), _torch_varlen()] if grouped else [_torch_varlen()]
        return tuple(way for way in ways if way is not None)

    def run(q: Tensor, k: Tensor, v: Tensor, p: Packed, scale: float, cap: float | None) -> Tensor:
        sizes = (p.cu_queries, p.cu_keys, p.max_queries, p.max_keys)
        more: dict[str, Any] = {"softcap": cap} if cap is not None else {}
        if p.window is not None:
            more["window_size"] = (p.window - 1, 0)
        more["deterministic"] = torch.are_deterministic_algorithms_enabled()
        return flash_attn_varlen_func(q, k, v, *sizes, softmax_scale=scale, causal=True, **more)

    return (run,)


def varlen_kernel(softcap: float | None = None) -> Kernel | Flash | None:
    """The best form for as many key heads as query heads, not yet tried; None: there is none."""
    return next(iter(varlen_kernels(Call(1, 1, 64, 64, softcap))), None)


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
    windowed = "window_size" in known
    scaled, grouped = "scale" in known, "enable_gqa" in known

    def run(q: Tensor, k: Tensor, v: Tensor, p: Packed, scale: float, cap: float | None) -> Tensor:
        far = -1 if p.window is None else p.window - 1
        options: dict[str, Any] = {"window_size": (far, 0)} if windowed else {"is_causal": True}
        if p.window is not None and not windowed:
            raise NotImplementedError("varlen_attn of this torch has no window_size")
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
def believed(device: torch.device, dtype: torch.dtype, call: Call) -> Kernel | Flash | None:
    """The first form that agrees with plain torch on this device, or None; tried once."""
    ways = varlen_kernels(call)
    for place, kernel in enumerate(ways):
        last = place == len(ways) - 1
        instead = PLAIN if last else "keys and values are repeated for each query head"
        if agrees(kernel, device, dtype, call, instead):
            return kernel
    return None


PLAIN = "plain torch takes its place, exact and slow"


@cache
def agrees(
    kernel: Kernel | Flash,
    device: torch.device,
    dtype: torch.dtype,
    call: Call,
    instead: str = PLAIN,
) -> bool:
    """Whether a kernel gives on this device what plain torch gives; tried once, on small trees.

    Output and gradients of q, k and v, and of sinks, are compared, each by its largest value.
    """
    # A thread of its own: what surrounds a model's forward (no gradient, inference mode, autocast,
    # the hooks with which activation checkpointing counts tensors) is kept by thread.
    with ThreadPoolExecutor(1) as apart:
        problem = apart.submit(_problem, kernel, device, dtype, call).result()
    if problem is not None:
        logger.warning(
            "The variable-length attention of this GPU is left aside (%s): %s.", problem, instead
        )
    return problem is None


def _problem(
    kernel: Kernel | Flash, device: torch.device, dtype: torch.dtype, call: Call
) -> str | None:
    """What a kernel does otherwise than plain torch, in words, or None."""
    # Branches at two depths, so that keys' gradients have up to four parts.
    stream = Stream.of((17, 9, (20, 40, 3, 5)), 5)
    draw = torch.Generator().manual_seed(0)
    groups = (1, call.groups, len(stream))
    shapes: list[tuple[int, ...]] = [(1, call.heads, len(stream), call.width)]
    shapes += [(*groups, call.width), (*groups, call.value_width)]
    shapes += [(call.heads,)] if call.sinks else []
    operands = [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]
    direction = torch.randn((*shapes[0][:3], call.value_width), generator=draw).to(device, dtype)
    scale, reach = call.width**-0.5, Reach(11 if call.windowed else None)

    def values(run: Callable[..., Tensor]) -> list[Tensor]:
        inputs = [x.detach().requires_grad_() for x in operands]
        out = run(*inputs[:3], stream, scale, call.softcap, reach, *inputs[3:])
        return [out.detach(), *torch.autograd.grad(out, inputs, direction)]

    try:
        wants, gots = values(Blockwise.apply), values(partial(varlen, kernel))
        # A product of two numbers of this dtype is rounded a few times on its way into a sum: twice
        # eps for the output, four times for gradients, which go through more products.
        eps = max(torch.finfo(dtype).eps, 1e-5)
        names = ("output", *(f"gradient of {name}" for name in ("q", "k", "v", "the sinks")))
        for name, got, want in zip(names, gots, wants, strict=False):
            off = float((got.float() - want.float()).abs().max() / want.float().abs().max())
            limit = (2 if name == "output" else 4) * eps
            if not off < limit:
                return f"{name} off by {off:.1e} of its largest value, limit {limit:.1e}"
    except torch.OutOfMemoryError:  # of the forward around it: no word on the kernel
        raise
    except (AssertionError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def varlen(
    kernel: Kernel | Flash,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stream: Stream,
    scale: float,
    softcap: float | None,
    reach: Reach = EVERYTHING,
    sinks: Tensor | None = None,
) -> Tensor:
    """One call of the kernel: operands and result as in `attend`, the reach within the stream."""
    packed, width = stream.packed(query.device, reach), value.shape[-1]
    if width < key.shape[-1]:
        value = torch.nn.functional.pad(value, (0, key.shape[-1] - width))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, d)
    if len(packed.keys) != len(stream):  # some key is read twice
        k, v = gathered(k, stream, reach), gathered(v, stream, reach)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if isinstance(kernel, Flash):
        out = FlashSinks.apply(q, k, v, sinks, packed, scale, kernel)
    else:
        out = kernel(q, k, v, packed, scale, softcap)
    return out[..., :width].transpose(0, 1)[None]
