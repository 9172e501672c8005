"""In which passes a preference loss is computed: one over the logits, or two.

- One pass: the gradient is made in the forward, chunk by chunk, and scaled in the backward
  (`prefkit_kernels.pair_scores`). What is scored is
  - each pair, where the loss of a pair is a function of its linear margin (`Objective.linear`);
  - else each token (`prefkit.loss.shared_tokens`): any function of log-probabilities will do, also
    one with weights that are known only when the pass has ended. With a KL the loss has to be a
    function of the margin, and no token may serve both sides of pairs.
- `auto` takes one pass where the head is frozen or the call holds one score.
- One pass that keeps dz, the gradients by the logits of the scored tokens, for a trainable head and
  any number of scores. `auto` takes it where dz is small (`keep_dz.allowed_bytes`).
- Two passes: the backward computes the logits again, by slices of the vocabulary. Everything else;
  `obstacle_to_one_pass` says why.

One pass takes 3 products of the head's size with a frozen head and 4 with a trainable one, the
reference included; two passes take 4 or 5, 6 with a KL. For a trainable head one pass holds the
weight's gradient in fp32 between forward and backward: that is the gradient itself where the weight
is fp32, and beside it, twice its size, where the weight is bf16; dz takes N × V numbers instead.
`passes="two_pass"` avoids both. One pass refuses a second backward through the same graph
(`retain_graph=True`), unless dz is kept.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefkit.loss.objective import Objective
from prefkit.loss.shared_tokens import Uses
from prefkit_kernels.core.checks import PASSES, autocast_operands
from prefkit_kernels.core.outputs import DIFFERENTIABLE
from prefkit_kernels.pair_scores.keep_dz import keeps_dz


def choose(
    passes: str,
    objective: Objective,
    pairs: int,
    heads: tuple[Tensor, Tensor, Tensor],  # hidden (T, D), weight (V, D), targets (T,)
    options: Mapping[str, Any],
    weights: Tensor | None = None,  # (T,)
    uses: Uses | None = None,
) -> str | None:
    """The passes with which `pair_scores` computes this call; None: `token_stats`.

    Args:
        passes: what the user asked for.
        objective: the loss.
        pairs: number of pairs in the call.
        heads, options: arguments of `token_stats`.
        weights: of the tokens.
        uses: of tokens that serve several sides; None = each serves one.
    Returns:
        "one_pass", "keep_dz" or None.
    Raises:
        ValueError: unknown passes; passes by name that cannot compute the loss.
    """
    if passes not in PASSES:
        raise ValueError(f"passes must be one of {', '.join(PASSES)}; got {passes!r}")
    hidden, weight, _ = heads
    bias = options.get("bias")
    trainable = weight.requires_grad or (bias is not None and bias.requires_grad)
    if not (torch.is_grad_enabled() and (hidden.requires_grad or trainable)):
        return None  # no gradient to make
    count = len(heads[2]) if by_token(objective, uses) else pairs
    obstacle = obstacle_to_one_pass(
        objective, count, passes, trainable, options.get("backend", "auto"), uses
    )
    if weights is not None and weights.requires_grad:
        obstacle = "weights that require a gradient are no coefficients known beforehand"
    if passes in ("one_pass", "keep_dz") and obstacle:
        raise ValueError(
            f"passes='{passes}' cannot compute this loss: {obstacle}; leave passes at 'auto'"
        )
    if passes != "auto" or obstacle:
        return passes if passes in ("one_pass", "keep_dz") else None
    if not trainable:
        return "one_pass"
    # The operands as autocast makes them; the weight's gradient stays in the weight's own dtype.
    operand, _ = autocast_operands(hidden, weight)
    if keeps_dz(
        (operand, heads[2]),
        weight,
        count,
        options.get("num_scored"),
        options.get("memory_budget"),
        options.get("vocab_shard"),
    ):
        return "keep_dz"
    return "one_pass" if count == 1 else None


def by_token(objective: Objective, uses: Uses | None = None) -> bool:
    """Whether each token is a score of its own, rather than each pair."""
    shared = uses is not None and uses.index is not None
    return shared or objective.not_linear is not None


def obstacle_to_one_pass(
    objective: Objective,
    scores: int,
    passes: str,
    trainable_head: bool,
    backend: str,
    uses: Uses | None = None,
) -> str | None:
    """Why a loss takes two passes over the logits, in words; None if one will do.

    Args:
        scores: pairs of a call, or its tokens where `by_token`.
        passes: with "one_pass" by name a trainable head takes one score a call.
    """
    shared = uses is not None and uses.index is not None
    more = {*objective.outputs} & {*DIFFERENTIABLE} - {"logp", *objective.read_by_hooks}
    if not type(objective).__module__.startswith("prefkit.loss.") and (more or not shared):
        return f"{type(objective).__name__} is a class of its own and may add terms to the loss"
    if more and objective.not_linear:
        return objective.not_linear
    if more and shared and not uses.one_sided:  # type: ignore[union-attr]
        return "a token is used by chosen and by rejected sides (one_sided is not set)"
    if trainable_head and passes == "one_pass":
        if shared:
            return "tokens of a tree are scores of their own, and a trainable head takes one a call"
        if objective.not_linear:
            return (
                f"{objective.not_linear}, so each token is a score of its own, and a trainable "
                "head takes one a call; passes='keep_dz' takes several"
            )
        if scores != 1:
            return (
                f"a trainable head takes one pair a call, this one holds {scores} (pairs are "
                "numbered from 0); passes='keep_dz' takes several"
            )
    if backend == "reference":
        return "backend='reference' is the unfused definition"
    return None
