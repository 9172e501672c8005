"""Sums over the two sides of each pair of a flat stream of tokens.

Segments say which side a token belongs to; everything an objective needs of a stream is a sum or a
mean over a side. The accumulation is sorted, so that a GPU gives the same bits every time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sides:
    """Sums over the tokens of each side, and which pairs exist.

    Attributes:
        count: number of pair slots P.
        bucket: (T,) int64, side of each token; 2P for tokens that belong to none.
        weights: (T,) weight of each token, 0 outside all sides.
        present: (P,) 1.0 for pairs that have a token of positive weight.
    """

    count: int
    bucket: Tensor
    weights: Tensor
    present: Tensor

    @classmethod
    def of(
        cls,
        segments: Tensor,
        weights: Tensor | None,
        like: Tensor,
        pairs_in_call: int | None = None,
    ) -> "Sides":
        """From segments (T,) and weights (T,) or None.

        Without `pairs_in_call` the pairs are counted, which is a synchronisation on a GPU. A
        segment beyond it is refused (by a device-side assertion on a GPU).
        """
        count = pairs_in_call
        if count is None:
            count = int(segments.max()) // 2 + 1 if segments.numel() else 0
        else:
            _check_count(segments, count)
        scored = segments >= 0
        bucket = torch.where(scored, segments, 2 * count)
        weights = torch.ones_like(like) if weights is None else weights.to(like.dtype)
        weights = torch.where(scored, weights, 0)
        sides = cls(count, bucket, weights, like.new_zeros(count))
        tokens = sides.sum((weights > 0).to(like.dtype))
        present = (tokens.sum(1) > 0).to(like.dtype)
        return cls(count, bucket, weights, present)

    def by_token(self, chosen: float, rejected: float) -> Tensor:
        """(T,) weight times the coefficient of the token's side, 0 outside all sides."""
        return torch.where(self.bucket % 2 == 0, chosen * self.weights, rejected * self.weights)

    def sum(self, values: Tensor) -> Tensor:
        """(P, 2) sums of values (T,) over the chosen and rejected tokens, unweighted.

        A sorted accumulation, so that a GPU gives the same bits every time.
        """
        total = values.new_zeros(2 * self.count + 1)
        total = total.index_put((self.bucket,), values, accumulate=True)
        return total[:-1].view(self.count, 2)

    def weighted(self, values: Tensor) -> Tensor:
        """(P, 2) Σ w·values."""
        return self.sum(self.weights * values)

    def mean(self, values: Tensor) -> Tensor:
        """(P, 2) Σ w·values / Σ w, 0 for an empty side."""
        total = self.sum(self.weights)
        return self.weighted(values) / torch.where(total > 0, total, 1)

    def average(self, per_pair: Tensor) -> Tensor:
        """Scalar mean of (P,) over the pairs that exist."""
        return (per_pair * self.present).sum() / self.present.sum().clamp(min=1)


def _check_count(segments: Tensor, count: int) -> None:
    right = (segments < 2 * count).all()
    message = f"pairs_in_call is {count}: segments must be below {2 * count}"
    if right.is_cuda:
        torch._assert_async(right, message)
    elif not torch.compiler.is_compiling() and not bool(right):
        raise ValueError(message)


def ranks(bucket: Tensor, buckets: int) -> tuple[Tensor, Tensor]:
    """For each token its place among the tokens of its bucket (T,), and the buckets' sizes."""
    sizes = torch.bincount(bucket, minlength=buckets)
    order = torch.argsort(bucket, stable=True)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(bucket), device=bucket.device) - starts[bucket[order]]
    return torch.empty_like(place).index_copy_(0, order, place), sizes
