"""Causal attention over a stream of trees, in memory that grows with its tokens alone.

No mask of queries × keys exists anywhere. A window shortens each attention's context, chunks cut it
into several (`Stream.attends`). A sink (gpt-oss; arXiv 2309.17453) is one more key of no value: a
term in the log-sum-exp, by which the outputs shrink. Three implementations of the same result:

- one variable-length call on a GPU (`varlen`, `sinks`);
- torch's CPU flash kernel (`flash_cpu`);
- plain torch everywhere else (`blockwise`).
"""

import math

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Reach, Stream
from prefkit.model.attention.compute.blockwise import Blockwise
from prefkit.model.attention.compute.flash_cpu import LEAST_WINDOW, FlashCPU
from prefkit.model.attention.compute.varlen import Call, believed, varlen


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
    wide = reach.window is None or reach.window >= LEAST_WINDOW
    if query.device.type == "cpu" and softcap is None and equal and wide:
        return FlashCPU.apply(query, key, value, stream, scale, reach, sinks)
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
