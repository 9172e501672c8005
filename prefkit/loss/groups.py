"""Pairs that share their chosen response: one choice out of it and all their rejected ones.

A pair compares two responses. A group of K pairs with the same chosen response says more: that it
is the best of K + 1. Its margins u_k become one, the soft minimum −log Σ_k exp(−u_k), of which a
link makes the loss of the group (`prefkit.loss.links`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Which group each pair of a call belongs to.

    Attributes:
        number: (P,) int64, the group of each pair, in [0, P); numbers may be left out.
        pairs: (P,) 1.0 for pairs that exist (`Sides.present`), whose dtype the sums have.
    """

    number: Tensor
    pairs: Tensor

    @property
    def present(self) -> Tensor:
        """(P,) 1.0 for numbers under which there is a pair that exists, by number."""
        return (self._sum(self.pairs) > 0).to(self.pairs.dtype)

    def soft_minimum(self, u: Tensor) -> Tensor:
        """(P,) −log Σ_k exp(−u_k) over the pairs of each number, from u (P,); of one pair it is u,
        to the bit. 0 where there is no pair. In the dtype of u, without overflow."""
        against = torch.where(self.pairs > 0, -u, -torch.inf)
        lowest = torch.full_like(against, -torch.inf)
        top = lowest.scatter_reduce(0, self.number, against.detach(), "amax")
        top = torch.where(torch.isfinite(top), top, 0)
        total = self._sum(torch.exp(against - top[self.number]))
        return -(top + torch.log(torch.where(self.present > 0, total, 1)))

    def mean(self, values: Tensor) -> Tensor:
        """(P,) means of values (P,) over the pairs of each number, 0 where there is none."""
        return self._sum(self.pairs * values) / self._sum(self.pairs).clamp(min=1)

    def average(self, by_number: Tensor) -> Tensor:
        """Scalar mean of (P,) by number over the groups that exist."""
        present = self.present
        return (by_number * present).sum() / present.sum().clamp(min=1)

    def _sum(self, values: Tensor) -> Tensor:
        """(P,) sums of values (P,) by number: sorted, so that a GPU gives the same bits always."""
        return values.new_zeros(values.shape).index_put((self.number,), values, accumulate=True)


def check_groups(groups: Tensor, pairs: int) -> None:
    """Refuses group numbers that are not one a pair, int64, in [0, pairs) (the range by a
    device-side assertion on a GPU).

    Raises:
        ValueError: see above.
    """
    if groups.shape != (pairs,) or groups.dtype != torch.int64:
        raise ValueError(
            f"groups must be int64 of shape ({pairs},), the number of each pair's group, got "
            f"{groups.dtype} of shape {tuple(groups.shape)}"
        )
    right = ((groups >= 0) & (groups < pairs)).all()
    message = f"groups must be in 0..{pairs - 1}: {pairs} pairs have no more groups than that"
    if right.is_cuda:
        torch._assert_async(right, message)
    elif not torch.compiler.is_compiling() and not bool(right):
        raise ValueError(message)
