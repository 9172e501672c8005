"""The quantities of a loss, pair by pair: what its metrics are means of."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from prefkit.loss.objective import Objective, Terms
from prefkit.loss.shared_tokens import Uses
from prefkit.loss.sides import Sides
from prefkit_kernels import TokenStats


@dataclass(frozen=True)
class PairValues:
    """Values of P pairs, without gradient; log-probabilities in nats.

    Attributes:
        logps: (P, 2) sums over the scored tokens of the chosen and of the rejected response.
        ref_logps: (P, 2) the same under the reference; None where the loss reads none.
        rewards: (P, 2) as the loss sees them (`Objective.rewards`).
    """

    logps: Tensor
    ref_logps: Tensor | None
    rewards: Tensor


@torch.no_grad()
def values_by_pair(
    objective: Objective,
    stats: TokenStats,
    segments: Tensor,  # (T,)
    weights: Tensor | None,  # (T,)
    pairs: int,
    token_index: Tensor | None = None,  # (T,)
    group: dist.ProcessGroup | None = None,
) -> PairValues:
    """The values of each pair of a call of `fused_preference_loss`.

    Args:
        objective: of the call.
        stats: its (N,) per-token quantities.
        segments, weights, pairs, token_index, group: as the call's segments, weights,
            pairs_in_call, token_index, sequence_group. With a group, every rank must ask.
    """
    scored = segments >= 0 if weights is None else (segments >= 0) & (weights != 0)
    stats = Uses(token_index).spread_stats(stats, scored)
    logp, ref_logp = stats.logp, stats.ref_logp
    assert logp is not None, "every objective reads it"
    ratio = logp
    if objective.needs_reference:
        assert ref_logp is not None, "the call has computed it, or taken it from a cache"
        ratio = logp - ref_logp
    sides = Sides.of(segments, weights, logp, pairs, group)
    rewards = objective.rewards(Terms(sides, logp, ratio, stats.kl))
    ref_logps = sides.sum(ref_logp) if objective.needs_reference and ref_logp is not None else None
    return PairValues(sides.sum(logp), ref_logps, rewards)
