"""Losses that are no functions of a margin: of both rewards of a pair, or of all pairs of a call.

S_w and S_l are a pair's sums of weighted log-ratios. Everything here is what TRL computes under the
same name.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkit.loss.links import link_loss
from prefkit.loss.sides import widest

if TYPE_CHECKING:
    from prefkit.loss.terms import Terms


def reward_loss(name: str, sums: Tensor, beta: float) -> Tensor:
    """(P,) the loss of each pair from its sums (P, 2) S_w, S_l.

    nca_pair: −log σ(βS_w) − ½ log σ(−βS_w) − ½ log σ(−βS_l) (arXiv 2402.05369).
    bco_pair: −log σ(βS_w) − log σ(−βS_l) (arXiv 2404.04656, without its moving average).
    sppo_hard: (S_w − 1/2β)² + (S_l + 1/2β)² (arXiv 2405.00675, eq. 4.7 with P of 1 and 0).
    apo_zero: 1 − σ(βS_w) + σ(βS_l) (arXiv 2408.06266, eq. 7).
    apo_down: σ(βS_w) + 1 − σ(β(S_w − S_l)) (the same, eq. 8).
    """
    chosen, rejected = sums.unbind(1)
    if name == "sppo_hard":
        return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
    chosen, rejected = beta * chosen, beta * rejected
    if name == "nca_pair":
        return -F.logsigmoid(chosen) - 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))
    if name == "bco_pair":
        return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)
    if name == "apo_zero":
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)
    if name == "apo_down":
        return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
    raise ValueError(f"there is no loss {name!r} of two rewards")


def batch_loss(name: str, terms: "Terms", beta: float, epsilon: float) -> Tensor:
    """(P,) a loss of all pairs of a call, dealt to the pairs.

    aot: −log σ(β(a_k − b_k)), a the sorted differences Σ log π(y_w) − Σ log π(y_l), b those of the
    reference; aot_unpaired: a the sorted S_w, b the sorted S_l (arXiv 2406.05882; ε smooths them as
    it does sigmoid). The k-th loss is that of the pair with the k-th smallest a.
    sft: mean of −log π over the weighted chosen tokens of the whole call, the same for every pair.
    """
    if name == "aot_unpaired":
        sums = terms.reward_sides.weighted(terms.ratio)
        return _transport(sums[:, 0], sums[:, 1], terms, beta, epsilon)
    if name == "aot":
        # Two sums of thousands of nats, of which the difference counts: it is rounded, not they.
        logp, ratio = widest(terms.logp), widest(terms.ratio)
        by_side = [terms.reward_sides.weighted(x) for x in (logp, (logp - ratio).detach())]
        policy, reference = (x[:, 0] - x[:, 1] for x in by_side)
        return _transport(policy, reference, terms, beta, epsilon).to(terms.logp.dtype)
    if name != "sft":
        raise ValueError(f"there is no loss {name!r} of a batch")
    total = terms.sides.totals[:, 0].sum()
    chosen = terms.sides.weighted(terms.logp)[:, 0].sum()
    return (-chosen / torch.where(total > 0, total, 1)).expand(terms.sides.count)


def _transport(high: Tensor, low: Tensor, terms: "Terms", beta: float, epsilon: float) -> Tensor:
    """(P,) the losses of sorted values beside each other; numbers without a pair come last."""
    present = terms.sides.present > 0
    high, order = torch.where(present, high, torch.inf).sort()
    low, _ = torch.where(present, low, torch.inf).sort()
    counts = torch.arange(len(order), device=order.device) < present.sum()
    margins = torch.where(counts, high, 0) - torch.where(counts, low, 0)
    losses = link_loss("sigmoid", beta * margins, epsilon=epsilon)
    return torch.zeros_like(losses).scatter(0, order, losses)
