"""Processes that share the tokens of the same pairs (sequence or context parallelism).

    hidden, targets, segments, … of this rank's tokens → partial sums → sums over the group → loss

Every rank adds up its own tokens, a side at a time; the sums over the group are the same numbers,
bit for bit, on every rank, and each computes the same loss from them.

Gradients. The loss is one function L of the sums S = Σ_ranks S_rank, computed by every rank for
itself. ∂L/∂S_rank = ∂L/∂S, which each rank already knows: no communication in the backward, and
what it gives is ∂L by this rank's own tokens, and this rank's part of ∂L by the weights. Weight
gradients *summed* over the group are those of a single process. A data-parallel *mean* over all
processes divides by the group's size besides, so multiply the loss by that size before `backward`
(or divide num_pairs by it).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


def check_group(group: Any, pairs_in_call: int | None) -> None:
    """What every rank can see alone, and so refuses alike, before anything is sent.

    Raises:
        ValueError: no process group; pairs_in_call is missing.
    """
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(
            f"sequence_group must be a ProcessGroup, got {group!r}: call init_process_group first, "
            "and give mesh.get_group() of a DeviceMesh; a process that is not of the group has no "
            "part in its loss"
        )
    if pairs_in_call is None:
        raise ValueError(
            "sequence_group needs pairs_in_call: a rank may hold no token of some pairs, so none "
            "can count them. Give the number of pairs that the whole group shares, the same on "
            "every rank"
        )


class _Sum(torch.autograd.Function):
    """The sum over the group forwards, the identity backwards.

    `torch.distributed.nn.all_reduce` also sums the incoming gradients. That is right where ranks
    have different losses, of which the sum is differentiated. Here they hold one and the same loss,
    each its own copy, and it would be counted as often as there are ranks.
    """

    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: dist.ProcessGroup) -> Tensor:
        # Gathered and added here in the order of ranks: the same bits on every rank and in every
        # run, whatever way a backend's all-reduce would take. It is two numbers a pair.
        partial = partial.contiguous()
        parts = [torch.empty_like(partial) for _ in range(group.size())]
        dist.all_gather(parts, partial, group=group)
        return torch.stack(parts).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def sum_over(group: dist.ProcessGroup | None, partial: Tensor) -> Tensor:
    """Σ over the ranks of the group of a tensor of one shape; the tensor itself without a group."""
    if group is None:
        return partial
    return _Sum.apply(partial, group)


def together(
    group: dist.ProcessGroup | None,
    device: torch.device,
    pairs_in_call: int | None,
    work: Callable[[], Result],
) -> Result:
    """work(), which sends nothing; refused on one rank, it is refused on all.

    Otherwise the others would wait for that rank in the next collective, until the time-out. On a
    GPU nobody is asked how it went (a synchronisation): the others meet a device-side assertion.

    Raises:
        ValueError, TypeError: work's own; ValueError: that of another rank, or ranks that disagree
            in pairs_in_call.
    """
    if group is None:
        return work()
    result: Result | None = None
    refusal: Exception | None = None
    try:
        result = work()
    except (ValueError, TypeError) as error:
        refusal = error
    mine = torch.full((2,), pairs_in_call or 0, device=device, dtype=torch.int64)
    mine[1] = int(refusal is not None)
    reports = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(reports, mine, group=group)
    if refusal is not None:
        raise refusal
    pairs, refused = torch.stack(reports).unbind(1)
    _require(refused == 0, "refused its shard: its own message says why", group)
    _require(pairs == mine[0], f"has other pairs_in_call than the {pairs_in_call} here", group)
    return result  # type: ignore[return-value]


def _require(right: Tensor, problem: str, group: dist.ProcessGroup) -> None:
    """Refuses where right (ranks,) is not all True."""
    if right.is_cuda:
        torch._assert_async(right.all(), f"a rank of sequence_group {problem}")
    elif not bool(right.all()):
        rank = int((~right).nonzero()[0])
        raise ValueError(f"rank {rank} of the {group.size()} of sequence_group {problem}")
