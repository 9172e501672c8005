"""Attention over a stream as variable-length calls on a GPU, tested before they are used.

flash-attn where it is installed, else torch's own; before torch has `enable_gqa`, first with
grouped heads as they are, then with keys and values repeated. Each form is used after its output
and its gradients have been compared with plain torch's. Keys are gathered once for each branch
that reads them, in one call where they are few (`groups`), else in several, whose forward and
backward are called by hand (`flash`). The causal alignment is at the bottom right. Values narrower
than keys (multi-head latent attention) get zeros up to their width: these kernels know one width.
"""

import inspect
import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Packed, Reach, Stream
from prefkit.model.attention.compute import trial
from prefkit.model.attention.compute.flash import TORCH, Flash, FlashGroups, Kernel, recomputed
from prefkit.model.attention.compute.groups import gathered, groups_of
from prefkit.model.attention.compute.trial import TREES, Call


@cache
def varlen_kernels(call: Call) -> tuple[Kernel | Flash, ...]:
    """Ways to a variable-length call, the best first; none where neither library is there.

    Sinks need the log-sum-exp and torch's own backward, which know no softcap. These are also the
    best for several calls: other ways compute each forward again in the backward.
    """
    if call.sinks:
        return () if call.softcap is not None else (TORCH,)
    whole = _with_a_gradient(call)
    return (TORCH, *whole) if call.divided and call.softcap is None else whole


def _with_a_gradient(call: Call) -> tuple[Kernel, ...]:
    """The functions that the libraries document, whose gradient is autograd's."""
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
    """The first form that agrees with plain torch on this device, or None; tried once.

    Raises:
        OutOfMemoryError: the device's memory ran out; the next call tries again.
    """
    ways = varlen_kernels(call)
    for place, kernel in enumerate(ways):
        instead = LAST if place == len(ways) - 1 else "the next way to call it is tried"
        if agrees(kernel, device, dtype, call, instead):
            return kernel
    return None


LAST = "FlexAttention is tried in its place"


@cache
def agrees(
    kernel: Kernel | Flash,
    device: torch.device,
    dtype: torch.dtype,
    call: Call,
    instead: str = LAST,
) -> bool:
    """Whether a kernel gives on this device what plain torch gives (`trial.agrees`); tried once."""
    most = len(TREES) if call.divided else None  # fewer keys than they have: several groups
    way = partial(varlen, kernel, most=most)
    return trial.agrees("variable-length attention", way, device, dtype, call, instead)


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
    most: int | None = None,
) -> Tensor:
    """Calls of the kernel, one where the keys allow it.

    Operands and result as in `attend`, the reach within the stream; `most` as in `groups_of`.
    """
    groups, width = groups_of(stream, query.device, reach, most), value.shape[-1]
    if width < key.shape[-1]:
        value = torch.nn.functional.pad(value, (0, key.shape[-1] - width))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, d)
    if len(groups) > 1 and not isinstance(kernel, Flash):
        kernel = recomputed(kernel, softcap)
    if isinstance(kernel, Flash):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = FlashGroups.apply(q, k, v, sinks, groups, scale, kernel)
    else:
        (group,) = groups
        q, k, v = q.contiguous(), gathered(k, group).contiguous(), gathered(v, group).contiguous()
        out = kernel(q, k, v, group.packed, scale, softcap)
    return out[..., :width].transpose(0, 1)[None]
