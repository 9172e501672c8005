"""Causal attention over a stream of trees, in memory that grows with its tokens alone.

No mask of queries × keys exists anywhere. A window shortens each attention's context, chunks cut it
into several (`Stream.attends`). A sink (gpt-oss; arXiv 2309.17453) is one more key of no value: a
term in the log-sum-exp, by which the outputs shrink. The same result is computed

- on a GPU, variable-length calls (`varlen`, `groups`, `flash`), or FlexAttention where no kernel
  for these fits (`flex`), each once it agrees with plain torch (`trial`);
- torch's CPU flash kernel (`flash_cpu`);
- plain torch everywhere else (`blockwise`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Reach, Stream
from prefkit.model.attention.compute import flex, varlen
from prefkit.model.attention.compute.blockwise import Blockwise
from prefkit.model.attention.compute.flash_cpu import LEAST_WINDOW, FlashCPU
from prefkit.model.attention.compute.trial import Call, Way

_forced: str | None = None  # of the process: autograd computes checkpointed layers in other threads


@contextmanager
def forced(way: str) -> Iterator[None]:
    """Within it `attend` computes in one way, in all threads: for tests and measurements.

    Args:
        way: "varlen" (on a GPU, in half precision), "flex" (on a CPU by its definition, with a
            matrix of all scores), or "plain".
    Raises:
        ValueError: another name.
    """
    global _forced
    if way not in ("varlen", "flex", "plain"):
        raise ValueError(f"there is no way {way!r} to attend: take 'varlen', 'flex' or 'plain'")
    before, _forced = _forced, way
    try:
        yield
    finally:
        _forced = before


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
        RuntimeError: a way is `forced` that is not there.
    """
    _check(query, key, value, stream)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    reach = reach.within(stream.longest)
    way = _chosen(query, key, value, stream, softcap, reach, sinks)
    return way(query, key, value, stream, scale, softcap, reach, sinks)


def _chosen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stream: Stream,
    softcap: float | None,
    reach: Reach,
    sinks: Tensor | None,
) -> Way:
    """The way to compute this, of those that are there."""
    if _forced == "flex":
        return flex.flex
    half = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    if (half and _forced is None) or _forced == "varlen":
        call = Call.of(query, key, value, stream, softcap, reach, sinks)
        kernel = varlen.believed(query.device, query.dtype, call)
        if kernel is not None:
            return partial(varlen.varlen, kernel)
        if _forced == "varlen":
            raise RuntimeError(f"no variable-length kernel agrees with plain torch for {call}")
        if flex.believed(query.device, query.dtype, call._replace(divided=False)):
            return flex.flex
    equal = key.shape[-1] == value.shape[-1]
    wide = reach.window is None or reach.window >= LEAST_WINDOW
    cpu = query.device.type == "cpu" and _forced is None
    if cpu and softcap is None and equal and wide:
        return _flash_cpu
    return Blockwise.apply


def _flash_cpu(
    query: Tensor, key: Tensor, value: Tensor, stream: Stream, scale: float, softcap: None,
    reach: Reach, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    return FlashCPU.apply(query, key, value, stream, scale, reach, sinks)


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
