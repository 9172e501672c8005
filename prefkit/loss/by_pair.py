"""Sums of per-token quantities over the responses of each pair."""

import torch.distributed as dist
from torch import Tensor

from prefkit.loss.shared_tokens import Uses
from prefkit.loss.sides import Sides


def sums_by_pair(
    values: Tensor,  # (N,)
    segments: Tensor,  # (T,)
    weights: Tensor | None,  # (T,)
    pairs: int,
    token_index: Tensor | None = None,  # (T,)
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """(P, 2) plain sums of a quantity over the scored tokens of both responses, chosen first.

    Args:
        values: (N,) of `fused_preference_loss(…).stats`.
        segments, weights, token_index: of the call; a token of weight 0 is not scored.
        pairs: P, the call's pairs_in_call.
        group: the call's sequence_group; each of its ranks must ask, and gets the whole sums.
    """
    spread = Uses(token_index).spread(values)
    scored = segments >= 0 if weights is None else (segments >= 0) & (weights != 0)
    return Sides.of(segments, weights, values, pairs, group).sum(spread.where(scored, 0))
