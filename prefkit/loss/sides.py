"""Sums over the two sides of each pair of a flat stream of tokens.

Segments say which side a token belongs to; everything an objective needs of a stream is a sum or a
mean over a side. The accumulation is sorted, so that a GPU gives the same bits every time. Where
the tokens are spread over the processes of a group, the sums are those of the group
(`prefkit.loss.sequence_group`), and no objective notices.
"""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from prefkit.loss.sequence_group import sum_over


@dataclass(frozen=True)
class Sides:
    """Sums over the tokens of each side, and which pairs exist.

    Attributes:
        count: number of pair slots P.
        bucket: (T,) int64, side of each token; 2P for tokens that belong to none.
        weights: (T,) weight of each token, 0 outside all sides.
        tokens: (P, 2) number of tokens of positive weight.
        totals: (P, 2) Σ w.
        present: (P,) 1.0 for pairs that have a token of positive weight.
        group: processes that hold the other tokens of these pairs, or None. `count`, `tokens`,
            `totals`, `present` and all sums are then the group's, and every sum is a collective
            call.
    """

    count: int
    bucket: Tensor
    weights: Tensor
    tokens: Tensor
    totals: Tensor
    present: Tensor
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(
        cls,
        segments: Tensor,
        weights: Tensor | None,
        like: Tensor,
        pairs_in_call: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> "Sides":
        """From segments (T,) and weights (T,) or None; like gives the dtype of sums.

        Without `pairs_in_call` the pairs are counted, which is a synchronisation on a GPU. A
        segment beyond it is refused (by a device-side assertion on a GPU). With a group it is
        needed, and the segments have been looked at before (`check_segments`, through `together`).
        """
        count = pairs_in_call
        if count is None:
            count = int(segments.max()) // 2 + 1 if segments.numel() else 0
        elif group is None:
            check_segments(segments, count)
        scored = segments >= 0
        bucket = torch.where(scored, segments, 2 * count)
        weights = torch.ones_like(like) if weights is None else weights.to(like.dtype)
        weights = torch.where(scored, weights, 0)
        tokens = _sums(bucket, weights > 0, count)
        # One message for both, and none later: how many there are must not depend on what a rank's
        # passes ask for.
        sums = sum_over(group, torch.stack([tokens, _sums(bucket, weights, count)])).to(like.dtype)
        present = (sums[0].sum(1) > 0).to(like.dtype)
        return cls(count, bucket, weights, sums[0], sums[1], present, group)

    def by_token(self, chosen: float, rejected: float) -> Tensor:
        """(T,) weight times the coefficient of the token's side, 0 outside all sides."""
        return torch.where(self.is_chosen, chosen * self.weights, rejected * self.weights)

    @property
    def is_chosen(self) -> Tensor:
        """(T,) whether a token is of a chosen side; outside all sides as well."""
        return self.bucket % 2 == 0

    def spread(self, by_side: Tensor, outside: float = 0.0) -> Tensor:
        """(T,) the value of each token's side, of (P, 2)."""
        return torch.cat([by_side.reshape(-1), by_side.new_full((1,), outside)])[self.bucket]

    def totals_by_token(self) -> Tensor:
        """(T,) Σ w of each token's side, 1 where that is 0 and outside all sides."""
        return self.spread(torch.where(self.totals > 0, self.totals, 1), outside=1)

    def beyond_shorter(self) -> Tensor:
        """(T,) whether a token's place in its side is beyond the length of the pair's shorter side.

        Of the tokens of this process; one of weight 0 has its place, too.
        """
        places, lengths = ranks(self.bucket, 2 * self.count + 1)
        shorter = lengths[:-1].view(self.count, 2).amin(1, keepdim=True).expand(-1, 2)
        return places >= self.spread(shorter, outside=len(places))

    def softmax(self, values: Tensor) -> Tensor:
        """(T,) shares of each side, of values (T,); 0 for −∞. Of the tokens of this process."""
        highest = values.new_full((2 * self.count + 1,), -torch.inf)
        highest = highest.scatter_reduce(0, self.bucket, values.detach(), "amax")
        highest = torch.where(torch.isfinite(highest), highest, 0)
        shares = torch.exp(values - highest[self.bucket])
        total = self.spread(self.local(shares), outside=1)
        return shares / torch.where(total > 0, total, 1)

    def aligned(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (T,) by position: token j of the chosen beside token j of the rejected side.

        Returns:
            (P, 2, L) values, 0 where a side has no position j; (P,) the positions of the longer
            side; (P, L) whether position j is one of them.
        """
        rank, lengths = ranks(self.bucket, 2 * self.count + 1)
        lengths = lengths[:-1].view(self.count, 2).amax(1)
        width = int(lengths.max()) if self.count else 0
        here = (self.bucket < 2 * self.count).nonzero().squeeze(1)
        table = values.new_zeros(2 * self.count, width)
        table = table.index_put((self.bucket[here], rank[here]), values[here], accumulate=True)
        active = torch.arange(width, device=values.device) < lengths[:, None]
        return table.view(self.count, 2, width), lengths, active

    def weighed(self, factors: Tensor) -> "Sides":
        """The same pairs, with factors (T,) ≥ 0 of the weights, which count in `totals`."""
        weights = self.weights * factors
        return replace(self, weights=weights, totals=self.sum(weights))

    def lighter(self, factors: Tensor) -> "Sides":
        """The same with `totals` as they are: sums and means become smaller."""
        return replace(self, weights=self.weights * factors)

    def detach(self) -> "Sides":
        """The same without gradient."""
        return replace(self, weights=self.weights.detach(), totals=self.totals.detach())

    def clone(self) -> "Sides":
        """The same in memory of its own."""
        own = ("bucket", "weights", "tokens", "totals", "present")
        return replace(self, **{name: getattr(self, name).clone() for name in own})

    def sum(self, values: Tensor) -> Tensor:
        """(P, 2) sums of values (T,) over the chosen and rejected tokens, unweighted."""
        return sum_over(self.group, _sums(self.bucket, values, self.count)).to(values.dtype)

    def local(self, values: Tensor) -> Tensor:
        """(P, 2) the same over this process's tokens alone."""
        return _sums(self.bucket, values, self.count).to(values.dtype)

    def weighted(self, values: Tensor) -> Tensor:
        """(P, 2) Σ w·values."""
        return self.sum(self.weights * values)

    def mean(self, values: Tensor) -> Tensor:
        """(P, 2) Σ w·values / Σ w, 0 for an empty side."""
        return self.weighted(values) / torch.where(self.totals > 0, self.totals, 1)

    def average(self, per_pair: Tensor) -> Tensor:
        """Scalar mean of (P,) over the pairs that exist."""
        return (per_pair * self.present).sum() / self.present.sum().clamp(min=1)


class EachSide:
    """The sides that exist, each counted by itself (a pair may have one alone)."""

    def __init__(self, sides: Sides) -> None:
        self.present = (sides.tokens > 0).to(sides.tokens.dtype)  # (P, 2)

    def average(self, by_side: Tensor) -> Tensor:
        """Scalar mean of (P, 2) over the sides that exist."""
        return (by_side * self.present).sum() / self.present.sum().clamp(min=1)


def _sums(bucket: Tensor, values: Tensor, count: int) -> Tensor:
    """(P, 2) sums of this process's values (T,) by bucket, in the widest dtype.

    A sorted accumulation, so that a GPU gives the same bits every time. It adds one token after
    another: in fp32 the sum of 32,000 log-probabilities would be off by 0.1 nats.
    """
    values = widest(values)
    total = values.new_zeros(2 * count + 1)
    total = total.index_put((bucket,), values, accumulate=True)
    return total[:-1].view(count, 2)


def widest(values: Tensor) -> Tensor:
    """The same numbers in fp64; in fp32 on devices that may not have it (MPS, XPU)."""
    narrow = values.device.type in ("mps", "xpu")
    return values.to(torch.float32 if narrow else torch.float64)


def check_segments(segments: Tensor, count: int) -> None:
    """Refuses a segment of a pair beyond `count` (by a device-side assertion on a GPU).

    Raises:
        ValueError: there is one.
    """
    right = (segments < 2 * count).all()
    message = f"pairs_in_call is {count}: segments must be below {2 * count}"
    if right.is_cuda:
        torch._assert_async(right, message)
    elif not torch.compiler.is_compiling() and not bool(right):
        raise ValueError(message)


def check_both_sides(sides: Sides) -> None:
    """Refuses a pair of which one side has no token, be it of weight 0; looked at on a CPU only.

    Raises:
        ValueError: names the pair.
    """
    if sides.weights.device.type != "cpu" or torch.compiler.is_compiling():
        return
    there = sides.sum(torch.ones_like(sides.weights)) > 0
    lone = (there.sum(1) == 1).nonzero()
    if len(lone):
        pair = int(lone[0])
        alone, absent = (2 * pair, 2 * pair + 1) if there[pair, 0] else (2 * pair + 1, 2 * pair)
        raise ValueError(
            f"pair {pair} has tokens of segment {alone} and none of {absent}: this loss compares "
            "two responses. Leave the pair out, or use KTO, which takes responses by themselves"
        )


def check_margins(margins: Tensor, pairs: int) -> None:
    """Refuses margins that are not one finite number a pair (finiteness on a CPU alone).

    Raises:
        ValueError: see above.
    """
    if margins.shape != (pairs,):
        raise ValueError(f"margins must have the shape ({pairs},), got {tuple(margins.shape)}")
    if margins.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not bool(torch.isfinite(margins).all()):
        raise ValueError("margins must be finite numbers, one a pair")


def ranks(bucket: Tensor, buckets: int) -> tuple[Tensor, Tensor]:
    """For each token its place among the tokens of its bucket (T,), and the buckets' sizes."""
    sizes = bucket.new_zeros(buckets)  # counted without a synchronisation, as bincount has one
    sizes = sizes.index_put((bucket,), torch.ones_like(bucket), accumulate=True)
    order = torch.argsort(bucket, stable=True)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(bucket), device=bucket.device) - starts[bucket[order]]
    return torch.empty_like(place).index_copy_(0, order, place), sizes
