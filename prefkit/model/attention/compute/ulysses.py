"""Attention over a sequence whose tokens are spread over the processes of a group.

Everything of a transformer but attention looks at one token at a time. For attention the processes
change places (DeepSpeed-Ulysses, arXiv 2309.14509): each gives away all heads but its own and gets
its own heads of all tokens, runs any local attention on the whole sequence, and changes back.

    (B, H, n, d) of n of N tokens → (B, H / S, N, d) → attend → (B, H / S, N, d) → (B, H, n, d)

Four all-to-all exchanges a layer (q, k, v, output), in which a process keeps 1/S of what it holds.
As attention runs on the whole sequence, packed rows, shared prefixes and masks need no second
thought. What limits it is the number of query heads, which the group's size must divide. Where key
and value heads are fewer, each is sent to every process whose queries read it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prefkit.errors import ModelError

# (B, H / S, N, d), (B, K, N, d), (B, K, N, d') → (B, H / S, N, d'), K key heads dividing H / S
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_heads(num_heads: int, num_kv_heads: int, size: int) -> None:
    """Refuses a model whose heads cannot be shared out; needs no more than its config.

    Args:
        num_heads, num_kv_heads: of queries, of keys and values (`num_attention_heads`,
            `num_key_value_heads`).
        size: S, processes of the group.
    Raises:
        ModelError: S does not divide the query heads, or the key heads do not.
    """
    if num_heads % size:
        possible = ", ".join(str(n) for n in range(2, num_heads + 1) if num_heads % n == 0)
        raise ModelError(
            f"{num_heads} attention heads cannot be shared out over {size} processes: "
            f"sequence_parallel_size must be a divisor of the heads ({possible or 'none but 1'})."
        )
    if num_heads % num_kv_heads:
        raise ModelError(
            f"{num_heads} query heads are no multiple of {num_kv_heads} key and value heads."
        )


def ulysses_attention(
    attend: Attend,
    q: Tensor,  # (B, H, n, d)
    k: Tensor,  # (B, K, n, d)
    v: Tensor,  # (B, K, n, d')
    group: dist.ProcessGroup,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Attention of this process's tokens over the whole sequence, differentiable.

    Args:
        attend: local attention on the whole sequence, given H / S query heads and the key and
            value heads that they read, in order; a number of them that divides H / S.
        q, k, v: of this process's tokens, already rotated by their positions in the whole sequence.
            Process r holds the r-th piece of the sequence.
        group: the S processes of the sequence.
        lengths: tokens of each process, the same list everywhere; None = as many as here on each.
    Returns:
        (B, H, n, d'), as `attend` would give these rows on a single process.
    Raises:
        ModelError: heads that cannot be shared out (`check_heads`).
        ValueError: shapes or lengths that do not fit.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    if not (k.shape[:3] == v.shape[:3] and q.shape[::2] == k.shape[::2]):
        raise ValueError(
            "q, k, v must be (B, H, n, d), (B, K, n, d), (B, K, n, d'), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    check_heads(heads, kv_heads, group.size())
    # The fewest copies with which every process gets the same number of key heads; it divides the
    # query heads, as both numbers do. Process r's queries then read exactly the heads it gets.
    copies = math.lcm(kv_heads, group.size()) // kv_heads
    if copies > 1:  # its gradient adds up what the copies' readers send back
        k, v = (x.repeat_interleave(copies, dim=1) for x in (k, v))
    q, k, v = (scatter_heads(x, group, lengths) for x in (q, k, v))
    return gather_heads(attend(q, k, v), group, lengths)


def scatter_heads(
    x: Tensor, group: dist.ProcessGroup, lengths: Sequence[int] | None = None
) -> Tensor:
    """(B, H, n, d), all heads of this process's tokens → (B, H / S, N, d), its heads of all tokens.

    Args:
        x: process r gets heads r·H/S to (r + 1)·H/S, and tokens in the order of processes.
        group, lengths: as in `ulysses_attention`.
    Raises:
        ModelError: S does not divide H.
        ValueError: lengths that do not fit.
    """
    check_heads(x.shape[1], x.shape[1], group.size())
    lengths = _checked(lengths, x.shape[2], group)
    return _ScatterHeads.apply(x, group, lengths)


def gather_heads(
    x: Tensor, group: dist.ProcessGroup, lengths: Sequence[int] | None = None
) -> Tensor:
    """The inverse of `scatter_heads`: (B, H / S, N, d) → (B, H, n, d).

    Raises:
        ValueError: lengths that do not fit.
    """
    total, size = x.shape[2], group.size()
    if (len(lengths) != size or sum(lengths) != total) if lengths else total % size:
        raise ValueError(
            f"{total} tokens do not fit lengths = {lengths} of {size} processes (None: equal ones)"
        )
    lengths = _checked(lengths, lengths[group.rank()] if lengths else total // size, group)
    return _GatherHeads.apply(x, group, lengths)


def _checked(lengths: Sequence[int] | None, here: int, group: dist.ProcessGroup) -> tuple[int, ...]:
    size = group.size()
    if lengths is None:
        return (here,) * size
    if len(lengths) != size or lengths[group.rank()] != here:
        raise ValueError(
            f"lengths = {list(lengths)} must name the tokens of {size} processes; process "
            f"{group.rank()} holds {here}"
        )
    return tuple(lengths)


class _ScatterHeads(torch.autograd.Function):
    """Every number only changes its place, so the gradient is the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, lengths: tuple[int, ...]) -> Tensor:
        ctx.group, ctx.lengths = group, lengths
        return _to_heads(x, group, lengths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _to_tokens(grad, ctx.group, ctx.lengths), None, None


class _GatherHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, lengths: tuple[int, ...]) -> Tensor:
        ctx.group, ctx.lengths = group, lengths
        return _to_tokens(x, group, lengths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _to_heads(grad, ctx.group, ctx.lengths), None, None


def _to_heads(x: Tensor, group: dist.ProcessGroup, lengths: tuple[int, ...]) -> Tensor:
    """(B, H, n, d) → (B, H / S, N, d)."""
    batch, heads, _, width = x.shape
    shapes = [(batch, heads // group.size(), length, width) for length in lengths]
    return torch.cat(_exchange(list(x.chunk(group.size(), dim=1)), shapes, group), dim=2)


def _to_tokens(x: Tensor, group: dist.ProcessGroup, lengths: tuple[int, ...]) -> Tensor:
    """(B, H / S, N, d) → (B, H, n, d)."""
    batch, heads, _, width = x.shape
    shapes = [(batch, heads, lengths[group.rank()], width)] * group.size()
    return torch.cat(_exchange(list(x.split(lengths, dim=2)), shapes, group), dim=1)


def _exchange(
    parts: list[Tensor], shapes: Sequence[tuple[int, ...]], group: dist.ProcessGroup
) -> list[Tensor]:
    """Sends parts[r] to process r; from process r comes a tensor of shapes[r].

    `all_to_all_single` with sizes is what every backend has (gloo has no `all_to_all`).
    """
    sent = torch.cat([part.reshape(-1) for part in parts])
    sizes = [math.prod(shape) for shape in shapes]
    received = sent.new_empty(sum(sizes))
    dist.all_to_all_single(received, sent, sizes, [part.numel() for part in parts], group=group)
    return [part.view(shape) for part, shape in zip(received.split(sizes), shapes, strict=True)]
