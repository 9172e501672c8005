"""Shipped `pair_weights`: (P,) factors of the pairs' losses."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from prefkit.loss.sides import Sides


def wpo(logp: Tensor, log_sum_sq: Tensor, sides: "Sides") -> Tensor:
    """WPO (arXiv 2406.11827, eq. 2): exp of the sum over both responses of mean_t(log p_t − q_t).

    q_t = log Σ_v p_t(v)² of the policy's distribution: how likely the pair is, next to what the
    policy would sample. As in TRL it is not cut at 1; the released code cuts it.
    """
    return sides.mean(logp - log_sum_sq).sum(1).exp()
