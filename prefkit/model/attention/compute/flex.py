"""Attention over a stream with FlexAttention (arXiv 2412.05496): who sees whom is an interval test.

Token i sees token j where j ≤ i < end of j's subtree and j's position is not below the first that
i's reach has. Which blocks of the scores hold all, some or none of these pairs follows from the
largest and least of these numbers in each block, so no matrix of queries × keys exists anywhere.
On a GPU the kernel is compiled once for each kind of layer, with lengths as variables. On a CPU
torch's own definition of it runs, scores and all, in small tests: with the same functions of mask
and score, and with gradients, which its public function leaves to GPUs.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Reach, Stream
from prefkit.model.attention.compute import trial
from prefkit.model.attention.compute.gathered_keys import moved
from prefkit.model.attention.compute.trial import Call

if TYPE_CHECKING:  # it loads the compiler
    from torch.nn.attention.flex_attention import BlockMask

Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

BLOCK = 128  # tokens of a block, the kernel's own choice
# A compiler takes sizes of 1 for constants: with fewer blocks a row would be compiled for itself.
_LEAST_BLOCKS = 2
# Kinds of layers, with and without gradients, that one process may compile.
_KINDS = 64


class Blocks(NamedTuple):
    """A stream in blocks of `BLOCK` tokens; what fills the last ones sees itself alone.

    Attributes:
        ends: (L,) int64, token j is seen by the tokens i with j ≤ i < ends[j] alone.
        positions: (L,) int64, of each token in its sequence.
        first: (L,) int64, the first position that each token's reach has.
        full: (B, B) bool, queries × keys: every query of the block sees every key.
        partial: (B, B) bool: some query may see some key, and not all see all.
    """

    ends: Tensor
    positions: Tensor
    first: Tensor
    full: Tensor
    partial: Tensor

    @classmethod
    def of(cls, stream: Stream, reach: Reach) -> "Blocks":
        """Blocks are exact without a reach; with one some `partial` ones may be empty."""
        count = max(-(-len(stream) // BLOCK), _LEAST_BLOCKS)
        more = torch.arange(len(stream), count * BLOCK)
        ends = torch.cat([stream.ends_of_tokens, more + 1])
        positions = torch.cat([stream.positions, torch.zeros_like(more)])
        first = torch.zeros_like(positions)
        if reach.window is not None:
            first = (positions - reach.window + 1).clamp_min(0)
        if reach.chunk is not None:
            first = torch.maximum(first, positions - positions % reach.chunk)
        last_end, least_end, last, least, late, early = (
            edge(x.view(count, BLOCK), 1)
            for x in (ends, positions, first)
            for edge in (torch.amax, torch.amin)
        )
        begin = torch.arange(0, count * BLOCK, BLOCK)
        queries = begin[:, None]
        some = (begin <= queries) & (queries < last_end) & (early[:, None] <= last)
        full = (begin < queries) & (queries + BLOCK <= least_end) & (late[:, None] <= least)
        return cls(ends, positions, first, full, some & ~full)


def block_mask(stream: Stream, device: torch.device, reach: Reach = EVERYTHING) -> "BlockMask":
    """The mask of a stream, in the form of FlexAttention; made once a device and reach.

    Its length is that of the stream, rounded up to blocks.
    """
    return stream.once(_block_mask, device, reach)


def _block_mask(stream: Stream, device: torch.device, reach: Reach) -> "BlockMask":
    from torch.nn.attention.flex_attention import BlockMask

    blocks = Blocks.of(stream, reach)
    ends, positions, first = (moved(x.to(torch.int32), device) for x in blocks[:3])
    if reach == EVERYTHING:

        def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j <= i) & (i < ends[j])

    else:

        def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j <= i) & (i < ends[j]) & (first[i] <= positions[j])

    sizes = (len(blocks.ends), len(blocks.ends))
    some, every = _listed(blocks.partial, device), _listed(blocks.full, device)
    return BlockMask.from_kv_blocks(
        *some, *every, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=sizes
    )


def _listed(chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, B) bool → how many key blocks each block of queries has, and which, these first."""
    counts = chosen.sum(1, dtype=torch.int32)
    which = chosen.int().argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return moved(counts[None, None], device), moved(which[None, None], device)


@cache
def _capped(softcap: float) -> Score:
    def score(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score


def _as_it_is(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stream: Stream,
    scale: float,
    softcap: float | None,
    reach: Reach = EVERYTHING,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of a stream: operands and result as in `attend`, the reach within the stream.

    On a CPU it takes memory for all scores.

    Raises:
        RuntimeError: of the compiler, on a GPU.
    """
    mask, tokens = block_mask(stream, query.device, reach), query.shape[2]
    # One layout for all rows, padded or not: each other one would be compiled for itself.
    more = mask.seq_lengths[0] - tokens
    pad = torch.nn.functional.pad
    q, k, v = (pad(x, (0, 0, 0, more)).contiguous() for x in (query, key, value))
    score = _as_it_is if softcap is None else _capped(softcap)
    run: Callable[..., Any] = _compiled if query.is_cuda else _by_definition
    out, lse = run(q, k, v, score, mask, scale, sinks is not None)
    if sinks is not None:  # exp(lse − log(exp(lse) + exp(s))), see `sinks`
        out = (out * (lse - sinks.to(lse.dtype)[:, None]).sigmoid()[..., None]).to(query.dtype)
    return out[:, :, :tokens]


def _by_definition(
    query: Tensor, key: Tensor, value: Tensor, score: Score, mask: "BlockMask", scale: float,
    with_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator below the public function, as torch defines it: dense, on any device."""
    from torch._higher_order_ops.flex_attention import flex_attention

    out, lse, *_ = flex_attention(query, key, value, score, mask.as_tuple(), scale, {})
    return out, lse * math.log(2)  # the operator counts in powers of two


def _public(
    query: Tensor, key: Tensor, value: Tensor, score: Score, mask: "BlockMask", scale: float,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The documented function. Raises ImportError with sinks before torch 2.9."""
    from torch.nn.attention.flex_attention import flex_attention

    for x in (query, key, value):  # so that no block's end needs to be looked for
        torch._check(x.shape[2] % BLOCK == 0)
    options: dict[str, Any] = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if not with_lse:
        return flex_attention(query, key, value, score, mask, **options), None
    from torch.nn.attention.flex_attention import AuxRequest

    options["return_aux"] = AuxRequest(lse=True)
    out, more = flex_attention(query, key, value, score, mask, **options)
    return out, more.lse


@cache
def _with_variable_lengths(backend: str | Callable[..., Any] = "inductor") -> Callable[..., Any]:
    # Without the whole graph it would run by its definition, with all scores in memory.
    return torch.compile(_public, dynamic=True, fullgraph=True, backend=backend)


def _compiled(*arguments: Any, backend: str | Callable[..., Any] = "inductor") -> Any:
    """`_public`, compiled for this kind of layer."""
    import torch._dynamo
    import torch.fx.experimental._config

    # Scale and cap are constants of a kernel. Sizes that are equal by chance, as heads and blocks,
    # are no reason to think that they always are.
    with (
        torch._dynamo.config.patch(specialize_float=True, recompile_limit=_KINDS),
        torch.fx.experimental._config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
    ):
        return _with_variable_lengths(backend)(*arguments)


@cache
def believed(device: torch.device, dtype: torch.dtype, call: Call) -> bool:
    """Whether it agrees with plain torch on this device; tried once, else the reason is logged.

    Raises:
        OutOfMemoryError: the device's memory ran out; the next call tries again.
    """
    return trial.agrees("FlexAttention", flex, device, dtype, call, trial.PLAIN)
