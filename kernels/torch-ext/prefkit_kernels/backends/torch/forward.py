"""Normalisers and sums over classes.

With lp = log p (policy), lr = log p' (reference) and d = lr − lp, each class adds
p'·(d + e^{−d} − 1) ≥ 0 to KL(ref‖policy): non-negative term by term, where Σ p'·d can go negative.
At a KL of 5e-9 the relative error is about 1e-4 (`test_digits_survive_next_to_the_reference`).
Where |d| is huge, p'·e^{−d} is p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.logits import LogitsBlock
from ...core.outputs import KLS
from .functions import SAFE_D, fit, log_ratio, logits, parts, within


def normalisers(block: LogitsBlock, out: Tensor) -> None:
    """What makes probabilities of `block.raw`; the reference is not looked at.

    Args:
        block: any slice of the vocabulary.
        out: (3, C), overwritten: max z, log Σ exp(z − max) (kept apart, so that a common offset of
            1e4 costs no digits of a difference), and the target's logit: −inf where the target is
            no class of this slice, NaN for a negative one. (4, C): also Σ z.
    """
    width = block.raw.shape[1]
    for part, here in parts(block):
        z = logits(part.raw, part.bias, part.scaling)
        top = z.amax(1)
        column = part.targets - part.first_class
        inside = (column >= 0) & (column < width)
        found = z.gather(1, column.clamp(0, width - 1)[:, None]).squeeze(1)
        found = torch.where(inside, found, -torch.inf)
        out[2, here] = torch.where(part.targets < 0, torch.nan, found)
        if len(out) > 3:
            out[3, here] = z.sum(1)
        # A slice of masked classes only has the sum 0, not NaN: other slices may hold the rest.
        shift = torch.where(top == -torch.inf, 0, top)[:, None]
        shifted = z.sub_(shift) if z is not part.raw else z - shift
        out[0, here] = top
        out[1, here] = shifted.exp_().sum(1).log_()


def class_sums(
    block: LogitsBlock,
    outputs: tuple[str, ...],  # of "kl", "reverse_kl", "entropy", "log_sum_sq"
    norms: Tensor,  # (4, C): max and log-sum of policy, of reference, over the whole vocabulary
    out: Tensor,  # (len(outputs), C), overwritten
) -> None:
    """Sums over the classes of this slice: KL terms, −p·log p, and p² (its log is the caller's)."""
    for part, here in parts(block):
        z = logits(part.raw, part.bias, part.scaling)
        lp = (z - norms[0, here, None]).sub_(norms[1, here, None])
        lr = d = None
        if part.ref is not None and KLS & set(outputs):
            zr = logits(part.ref, part.ref_bias, part.scaling)
            lr = (zr - norms[2, here, None]).sub_(norms[3, here, None])
            width = max(z.shape[1], zr.shape[1])
            d = log_ratio(fit(z, width), fit(zr, width), norms[:, here])
        for k, name in enumerate(outputs):
            out[k, here] = class_sum(name, lp, lr, d)


def class_sum(name: str, lp: Tensor, lr: Tensor | None, d: Tensor | None) -> Tensor:
    if name == "entropy":
        return -_expectation(lp, lp)
    if name == "log_sum_sq":
        return (2 * lp).exp_().sum(1)
    assert lr is not None, "token_stats refuses a KL without a reference"
    assert d is not None, "made with lr"
    lp, lr = fit(lp, d.shape[1]), fit(lr, d.shape[1])
    return _kl(lr, lp, d) if name == "kl" else _kl(lp, lr, -d)


def _kl(lq: Tensor, lp: Tensor, d: Tensor) -> Tensor:
    """Σ q·[log q − log p] with d = log q − log p, non-negative term by term."""
    q = lq.exp()
    if within(d, SAFE_D):
        return torch.expm1(-d).add_(d).mul_(q).sum(1).clamp_min_(0)
    p = lp.exp()
    near = d.abs() <= SAFE_D
    terms = torch.where(near, q * (d + torch.expm1(torch.where(near, -d, 0))), q * d + (p - q))
    return torch.where(q == 0, p, terms).sum(1).clamp_min_(0)


def _expectation(lp: Tensor, values: Tensor) -> Tensor:
    """Σ p·values, where a masked class (0 · −inf) adds nothing and a real NaN stays."""
    if not lp.is_cuda:
        total = (lp.exp() * values).sum(1)
        if not bool(total.isnan().any()):
            return total
    return (lp.exp() * values.masked_fill(lp == -torch.inf, 0)).sum(1)
