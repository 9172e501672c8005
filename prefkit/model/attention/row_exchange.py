"""A row whose tokens are spread over processes, whole for a moment and back: with gradients.

What `all_of_row` gives, every process may use; the gradients of all uses add up. What each process
hands to `share_of_row` adds up too, so each fills in the tokens it computed and leaves 0 elsewhere.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_of_row(x: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This process's n tokens along `dim` → all N of the group's processes, in rank order."""
    if dim == 0:  # a count of this piece's tokens, as models make it: count on
        return torch.arange(len(x) * group.size(), dtype=x.dtype, device=x.device)
    return _Gather.apply(x.movedim(dim, 0), group).movedim(0, dim)


def share_of_row(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(N, …), of each process what it computed → (n, …), their sum for this process's tokens."""
    return _Share.apply(x, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _share(grad, ctx.group), None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _share(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather(grad, ctx.group), None


def _gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = x.new_empty((len(x) * group.size(), *x.shape[1:]))
    dist.all_gather_into_tensor(whole, x.contiguous(), group=group)
    return whole


def _share(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Summed in rank order on every backend: gloo knows no reduce-scatter of all dtypes."""
    parts = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(parts, x.contiguous(), group=group)
    return parts.view(group.size(), -1, *x.shape[1:]).sum(0)
