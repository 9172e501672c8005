"""Shipped `token_weights`: (T,) factors of the rows' own weights.

In formulas r_t = logp_t − ref_logp_t, p_t = exp(logp_t), v_t a token's weight as its row gives it,
and n a response's tokens of positive v. Parameters with a default are a function's own: other
values stand in parentheses, "ld_dpo(alpha=0.3)".
"""

import torch
from torch import Tensor

from prefkit.loss.sides import Sides, widest


def confpo(logp: Tensor, sides: Sides) -> Tensor:
    """ConfPO (arXiv 2506.08712): 1 where p_t is below the mean of p over its response, else 0.

    The threshold is that of the released code (its paper's text was not read). Where a response
    has no such token, because all of its tokens are equally likely, no token of the pair counts: it
    has no gradient, as in the released code, and the constant loss of two equal rewards (log 2
    where no margin is subtracted; in the released code 0). The paper divides by the number of
    selected tokens: use it with simpo, or `length_normalized`, where Σ w divides.
    """
    probability = logp.exp()
    # The mean of equal numbers must be that number: only then is none of them below it.
    exact = widest(probability)
    sums, totals = sides.weighted(exact), sides.weighted(torch.ones_like(exact))
    mean = (sums / torch.where(totals > 0, totals, 1)).to(logp.dtype)
    low = (probability < sides.spread(mean)).to(logp.dtype)
    both = ((sides.weighted(low) > 0) | (sides.tokens == 0)).all(1, keepdim=True)
    return low * sides.spread(both.expand(-1, 2).to(logp.dtype))


def ld_dpo(sides: Sides, *, alpha: float = 0.5) -> Tensor:
    """LD-DPO (arXiv 2409.06411): α for tokens beyond the length of the shorter response, else 1.

    `ld_alpha` has the same factors in the rewards alone; as weights they also count in Σ w, which
    divides means, and in `nll_weight` and sft. A response alone (kto) has 1 everywhere. α = 0.5 was
    chosen here.
    """
    ones = torch.ones_like(sides.weights)
    paired = (sides.sum(ones) > 0).all(1, keepdim=True).expand(-1, 2)
    tails = sides.beyond_shorter() & (sides.spread(paired.to(ones.dtype)) > 0)
    return torch.where(tails, alpha, ones)


def tis_dpo(
    logp: Tensor, ref_logp: Tensor, sides: Sides, *, mu: float = 1.0,
    low: float = -0.5, high: float = 1.5,
) -> Tensor:  # fmt: skip
    """TIS-DPO's clipped weights (arXiv 2410.04350): exp(±μ·clip(r_t, L, U)), + chosen, − rejected.

    The paper takes the log-ratio of two contrastive models, trained on chosen and on rejected
    responses; here they are policy and reference, so that all weights are 1 at the start. The
    paper's equations were not read: this form and its constants are from memory, and those of
    another public implementation (github.com/tue09/TIS_DPO). The released code clips to
    [−1.5, 1.5], or ranks, and maps linearly to [0.7, 1.3].
    """
    clipped = (logp - ref_logp).clamp(low, high)
    return torch.exp(mu * torch.where(sides.is_chosen, clipped, -clipped))


def full_step_dpo(weights: Tensor, sides: Sides, *, gamma: float = 0.5) -> Tensor:
    """Full-Step-DPO (arXiv 2502.14356): w_t = n·softmax_t(±γ·v_t), + chosen, − rejected.

    v_t is the reward of the token's step, which the row brings as its weight (> 0; 0 leaves the
    token out). γ and the softmax over tokens are the released code's (the paper's text was not
    read). Its gradient by log π of a token is

        ∓σ(−u)·σ(∓r_t)·softmax_t(±γ·v_t), with u = β(S_w − S_l) of plain sums S

    because it divides by n afterwards: use this with `length_normalized`, where Σ w = n divides.
    The gradient is then ∓σ(−u)·β·softmax_t, with u of weighted means: β in the place of σ(∓r_t),
    which is ½ at the start. Without it the gradient of each response is n times as large.
    """
    counts = sides.weights > 0
    signed = gamma * torch.where(sides.is_chosen, weights, -weights)
    share = sides.softmax(torch.where(counts, signed, -torch.inf))
    tokens = sides.spread(sides.sum(counts.to(weights.dtype)))
    return torch.where(counts, tokens * share / torch.where(counts, weights, 1), 0)


def step_rewards(sides: Sides) -> Tensor:
    """w_t = v_t / mean of v: rewards of steps, given as weights, that average 1 in each response.

    No paper's: it keeps β's meaning where rewards are of another size in every row.
    """
    tokens = sides.sum((sides.weights > 0).to(sides.weights.dtype))
    return sides.spread(tokens / torch.where(sides.totals > 0, sides.totals, 1))
