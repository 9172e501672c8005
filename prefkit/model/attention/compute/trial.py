"""An implementation of attention is tried on a device, against plain torch, before it is believed.

Its output and its gradients on small trees are compared, each by its largest value. What differs,
fails or is not there is left aside, with the reason in the log.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from prefkit.data.batch.stream import Reach, Stream
from prefkit.model.attention.compute.blockwise import Blockwise
from prefkit.model.attention.compute.groups import groups_of

logger = logging.getLogger(__name__)

PLAIN = "plain torch takes its place, exact and slow"

# Operands as in `attend`: query, key, value, stream, scale, softcap, reach, sinks.
Way = Callable[..., Tensor]


class Call(NamedTuple):
    """What distinguishes the calls that an implementation is tried for.

    Attributes:
        heads, groups: query heads, key heads.
        width, value_width: numbers of each query and key, and of each value.
        softcap: of the scores, or None.
        windowed: some keys before a query are too far back.
        sinks: heads have sinks.
        divided: the keys that branches read are more than one variable-length call may gather.
    """

    heads: int
    groups: int
    width: int
    value_width: int
    softcap: float | None = None
    windowed: bool = False
    sinks: bool = False
    divided: bool = False

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        stream: Stream,
        softcap: float | None,
        reach: Reach,
        sinks: Tensor | None,
    ) -> "Call":
        """Of operands (1, heads, N, width) and the stream of the N tokens."""
        sizes = query.shape[1], key.shape[1], query.shape[3], value.shape[3]
        divided = len(groups_of(stream, query.device, reach)) > 1
        return cls(*sizes, softcap, reach.window is not None, sinks is not None, divided)


# Branches at two depths, so that keys' gradients have up to four parts.
TREES = Stream.of((17, 9, (20, 40, 3, 5)), 5)


def agrees(
    name: str, way: Way, device: torch.device, dtype: torch.dtype, call: Call, instead: str
) -> bool:
    """Whether an implementation gives on this device what plain torch gives, on small trees.

    Args:
        name: of it, for the log.
        way: is given what `attend` is given.
        device, dtype, call: what it is tried for.
        instead: what happens otherwise, for the log.
    Raises:
        OutOfMemoryError: the device's memory ran out, which is no word on the implementation.
    """
    # A thread of its own: what surrounds a model's forward (no gradient, inference mode, autocast,
    # the hooks with which activation checkpointing counts tensors) is kept by thread.
    with ThreadPoolExecutor(1) as apart:
        problem = apart.submit(_problem, way, device, dtype, call).result()
    if problem is not None:
        logger.warning("The %s of this GPU is left aside (%s): %s.", name, problem, instead)
    return problem is None


def _problem(way: Way, device: torch.device, dtype: torch.dtype, call: Call) -> str | None:
    """What an implementation does otherwise than plain torch, in words, or None."""
    draw = torch.Generator().manual_seed(0)
    groups = (1, call.groups, len(TREES))
    shapes: list[tuple[int, ...]] = [(1, call.heads, len(TREES), call.width)]
    shapes += [(*groups, call.width), (*groups, call.value_width)]
    shapes += [(call.heads,)] if call.sinks else []
    operands = [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]
    direction = torch.randn((*shapes[0][:3], call.value_width), generator=draw).to(device, dtype)
    scale, reach = call.width**-0.5, Reach(11 if call.windowed else None)

    def values(run: Way) -> list[Tensor]:
        inputs = [x.detach().requires_grad_() for x in operands]
        sinks = inputs[3] if call.sinks else None
        out = run(*inputs[:3], TREES, scale, call.softcap, reach, sinks)
        return [out.detach(), *torch.autograd.grad(out, inputs, direction)]

    try:
        wants, gots = values(Blockwise.apply), values(way)
        # A product of two numbers of this dtype is rounded a few times on its way into a sum: twice
        # eps for the output, four times for gradients, which go through more products.
        eps = max(torch.finfo(dtype).eps, 1e-5)
        names = ("output", *(f"gradient of {name}" for name in ("q", "k", "v", "the sinks")))
        for name, got, want in zip(names, gots, wants, strict=False):
            off = float((got.float() - want.float()).abs().max() / want.float().abs().max())
            limit = (2 if name == "output" else 4) * eps
            if not off < limit:
                return f"{name} off by {off:.1e} of its largest value, limit {limit:.1e}"
    except torch.OutOfMemoryError:  # of the forward around it: no word on the implementation
        raise
    except Exception as error:  # whatever a kernel, a compiler or a missing one of them says
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
