"""Which schedule computes a preference loss: one pass over the logits, or two.

- One pass: the gradient is made in the forward, chunk by chunk, and scaled in the backward. `auto`
  takes it where the loss of a pair is a function of its linear margin (all but
  reduction="position" and nll_weight) and the head is frozen or the call holds one pair.
- Two passes: the backward computes the logits again, by slices of the vocabulary. Everything else.

One pass takes 3 products of the head's size with a frozen head and 4 with a trainable one, the
reference included; two passes take 4 or 5, 6 with a KL. For a trainable head one pass holds the
weight's gradient in fp32 between forward and backward: that is the gradient itself where the weight
is fp32, and beside it, twice its size, where the weight is bf16; `schedule="two_pass"` avoids that.
One pass refuses a second backward through the same graph (`retain_graph=True`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefkit.objectives import DPO, TDPO, Objective
from prefkit_kernels.checks import SCHEDULES


def takes_one_pass(
    schedule: str,
    objective: Objective,
    pairs: int,
    heads: tuple[Tensor, Tensor, Tensor],  # hidden (T, D), weight (V, D), targets (T,)
    options: Mapping[str, Any],
    weights: Tensor | None = None,  # (T,)
) -> bool:
    """Whether to compute this call in one pass.

    Args:
        schedule: what the user asked for.
        objective: the loss.
        pairs: number of pairs in the call.
        heads, options: arguments of `token_stats`.
        weights: of the tokens.
    Raises:
        ValueError: an unknown schedule; "one_pass" where it cannot compute the loss.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    hidden, weight, _ = heads
    bias = options.get("bias")
    trainable = weight.requires_grad or (bias is not None and bias.requires_grad)
    if not (torch.is_grad_enabled() and (hidden.requires_grad or trainable)):
        return False  # no gradient, no schedule
    obstacle = obstacle_to_one_pass(objective, pairs, trainable, options.get("backend", "auto"))
    if weights is not None and weights.requires_grad:
        obstacle = "weights that require a gradient are no coefficients known beforehand"
    if schedule == "one_pass" and obstacle:
        raise ValueError(
            f"schedule='one_pass' cannot compute this loss: {obstacle}; leave schedule at 'auto'"
        )
    return schedule != "two_pass" and obstacle is None


def obstacle_to_one_pass(
    objective: Objective, pairs: int, trainable_head: bool, backend: str
) -> str | None:
    """Why a loss takes two passes over the logits, in words; None if one will do."""
    if type(objective) not in (DPO, TDPO):
        return f"{type(objective).__name__} is a class of its own and may add terms to the loss"
    if objective.linear is None:
        return "reduction='position' and nll_weight are no functions of a pair's margin alone"
    if pairs != 1 and trainable_head:
        return (
            f"a trainable head takes one pair a call, this one holds {pairs} (pairs are numbered "
            "from 0)"
        )
    if backend == "reference":
        return "backend='reference' is the unfused definition"
    return None
