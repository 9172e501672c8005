"""What a case should give: its loss, quantities and gradients in fp64, and how far a way is off.

Written out from the formulas, sharing nothing with the package or the peers; by blocks of tokens,
so that it fits where whole fp64 logits do not. With S = Σ r, K = Σ KL(ref‖policy) a side,
u = β(S_w − S_l) − αβ(K_l − K_w) with no gradient through K_w (TDPO2, arXiv 2404.11999; DPO has no
K), the loss is the mean of −log σ(u) over pairs. Its gradient by r_t and KL_t is known once all u
are, so a second sweep differentiates each block on its own.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems import Problem

BETA, ALPHA = 0.1, 0.5
_ROWS, _BLOCK = 128, 1 << 24


@dataclass(frozen=True)
class Truth:
    """fp64: loss (), logp (N,), kl (N,) or None, d_hidden (N, D), d_weight (V, D) or None.

    Rows that are not scored hold 0.
    """

    loss: Tensor
    logp: Tensor
    kl: Tensor | None
    d_hidden: Tensor
    d_weight: Tensor | None


@dataclass(frozen=True)
class Found:
    """What a way computed, with the names and shapes of `Truth`; None where it does not tell."""

    loss: Tensor
    logp: Tensor | None
    kl: Tensor | None
    d_hidden: Tensor | None
    d_weight: Tensor | None


def truth(problem: Problem) -> Truth:
    """Everything in fp64 from the problem's own (rounded) inputs."""
    case = problem.case
    with_kl = case.loss == "tdpo2"
    weight, ref_weight = problem.weight.detach().double(), problem.ref_weight.double()
    places = problem.scored.nonzero().squeeze(1)
    logp, ratio, kl = (weight.new_zeros(case.tokens) for _ in range(3))
    for here in places.split(_ROWS):
        parts = _quantities(
            problem, here, problem.hidden.detach()[here].double(), weight, ref_weight
        )
        logp[here], ratio[here], kl[here] = parts
    loss, by_ratio, by_kl = _loss(problem, ratio, kl if with_kl else None)
    d_hidden = weight.new_zeros(case.tokens, case.dim)
    d_weight = None if case.frozen else torch.zeros_like(weight)
    weight.requires_grad_(not case.frozen)
    for here in places.split(_ROWS):
        rows = problem.hidden.detach()[here].double().requires_grad_()
        _, r, k = _quantities(problem, here, rows, weight, ref_weight)
        wanted = [rows] if d_weight is None else [rows, weight]
        found = torch.autograd.grad(r @ by_ratio[here] + k @ by_kl[here], wanted)
        d_hidden[here] = found[0]
        if d_weight is not None:
            d_weight += found[1]
    return Truth(loss, logp, kl if with_kl else None, d_hidden, d_weight)


def _quantities(
    problem: Problem, here: Tensor, rows: Tensor, weight: Tensor, ref_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """log p(y), log p(y) − log p'(y) and KL(p'‖p) of the tokens at `here`."""
    target = problem.targets[here, None]
    lp = (rows @ weight.T).log_softmax(-1)
    with torch.no_grad():
        lr = (problem.ref_hidden[here].double() @ ref_weight.T).log_softmax(-1)
    ref = lr.gather(1, target).squeeze(1)
    if problem.ref_logp is not None:
        ref = problem.ref_logp[here].double()
    logp = lp.gather(1, target).squeeze(1)
    return logp, logp - ref, (lr.exp() * (lr - lp)).sum(-1)


def _loss(problem: Problem, ratio: Tensor, kl: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients by ratio and KL, (N,) each."""
    ratio = ratio.detach().requires_grad_()
    kl = torch.zeros_like(ratio) if kl is None else kl.detach().clone()
    kl.requires_grad_()
    pairs, scored = problem.case.pairs, problem.scored
    chosen, rejected = (ratio * scored).view(2, pairs, -1).sum(-1)
    k_chosen, k_rejected = (kl * scored).view(2, pairs, -1).sum(-1)
    alpha = ALPHA if problem.case.loss == "tdpo2" else 0.0
    u = BETA * (chosen - rejected) - alpha * BETA * (k_rejected - k_chosen.detach())
    loss = -F.logsigmoid(u).mean()
    by_ratio, by_kl = torch.autograd.grad(loss, (ratio, kl))
    return loss.detach(), by_ratio, by_kl


def errors(found: Found, expected: Truth, scored: Tensor) -> dict[str, float]:
    """Largest error over largest true value, of each quantity that the way gives.

    Per-token quantities are compared where `scored`; elsewhere nobody reads them.
    """
    compared = {}
    for name in ("loss", "logp", "kl", "d_hidden", "d_weight"):
        a, b = getattr(found, name), getattr(expected, name)
        if a is None or b is None:
            continue
        if name in ("logp", "kl"):
            a, b = a[scored], b[scored]
        compared[name] = relative_error(a, b)
    return compared


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max |found − expected| / max |expected|; by blocks, so that no large fp64 copy is made."""
    blocks = zip(
        found.detach().reshape(-1).split(_BLOCK), expected.reshape(-1).split(_BLOCK), strict=True
    )
    difference = max(float((a.double() - b).abs().max()) for a, b in blocks)
    return difference / max(float(expected.abs().max()), 1e-300)
