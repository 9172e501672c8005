"""Attentions of a stream in groups, each one variable-length call with a bounded number of keys.

A call reads the keys of each branch with the path to it: of a deep tree that is the sum of its
paths, many times its tokens. So consecutive attentions share a call only while their keys are no
more than `KEYS` times the tokens of the row.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Attend, Packed, Reach, Span, Stream
from prefkit.model.attention.compute.gathered_keys import Uses

# Keys of a call, in tokens of the row: what a pair that shares a prefix has at most, so that its
# row is one call. No path is longer than the row, so that every single attention fits.
KEYS = 2


@dataclass(frozen=True, eq=False)
class Group:
    """Consecutive attentions of a stream that are computed in one call.

    Attributes:
        attends: their queries follow each other in the row.
        device: of the tensors.
        reach: how far back a token sees.
    """

    attends: tuple[Attend, ...]
    device: torch.device
    reach: Reach

    @property
    def queries(self) -> Span:
        """Their tokens."""
        return Span(self.attends[0].queries.start, self.attends[-1].queries.stop)

    @cached_property
    def shares(self) -> bool:
        """Whether its keys are more than its own tokens."""
        return any(one.context for one in self.attends)

    @cached_property
    def packed(self) -> Packed:
        """What the call is told; its keys are numbered as in the row."""
        return Packed.of(list(self.attends), self.device, self.reach)

    @cached_property
    def uses(self) -> Uses:
        """The way back from the keys of the call to the tokens."""
        return Uses.of(self.attends, self.device)

    def gathered(self, x: Tensor) -> Tensor:
        """(N, heads, d) of the row's tokens → (K, heads, d) of the call's keys; not recorded."""
        if self.shares:
            return x.index_select(0, self.packed.keys)
        return x[self.queries.start : self.queries.stop]

    def back(self, grad: Tensor) -> Tensor:
        """The gradient of `gathered` where this group is the whole row: (K, …) → (N, …)."""
        if not self.shares:
            return grad
        total = grad.index_select(0, self.uses.own)
        if self.uses.most > 2:  # a sum of two is rounded once in any case
            total = total.to(torch.promote_types(grad.dtype, torch.float32))
        self.uses.add_further(total, grad)
        return total.to(grad.dtype)

    def add(self, total: Tensor, grad: Tensor) -> None:
        """total (N, …), of the whole row, += the gradient of `gathered`, from grad (K, …)."""
        own = grad.index_select(0, self.uses.own) if self.shares else grad
        total[self.queries.start : self.queries.stop].add_(own)
        if self.shares:
            self.uses.add_further(total, grad)


def groups_of(
    stream: Stream, device: torch.device, reach: Reach = EVERYTHING, most: int | None = None
) -> tuple[Group, ...]:
    """The groups of a stream, whose queries tile it in order; made once.

    Args:
        stream: of N tokens.
        device: of the groups' tensors.
        reach: how far back a token sees.
        most: keys of a group, if it has more than one attention; None = KEYS · N.
    """
    return stream.once(_groups_of, device, reach, most)


def _groups_of(
    stream: Stream, device: torch.device, reach: Reach, most: int | None
) -> tuple[Group, ...]:
    limit = KEYS * len(stream) if most is None else most
    groups = _grouped(stream.attends(reach), limit)
    return tuple(Group(tuple(one), device, reach) for one in groups)


def _grouped(attends: Iterable[Attend], limit: int) -> list[list[Attend]]:
    groups: list[list[Attend]] = []
    keys = 0
    for one in attends:
        if groups and keys + one.key_count <= limit:
            groups[-1].append(one)
            keys += one.key_count
        else:
            groups.append([one])
            keys = one.key_count
    return groups


def gathered(x: Tensor, group: Group) -> Tensor:
    """`Group.gathered` of the group that is the whole row, with its gradient."""
    return _Gather.apply(x, group) if group.shares else x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.gathered(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.back(grad), None
