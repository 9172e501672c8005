"""The formulas of the row functions in torch, for whole blocks of rows.

With lp = log p (policy), lr = log p' (reference) and d = lr − lp, each class adds
p'·(d + e^{−d} − 1) ≥ 0 to KL(ref‖policy): non-negative term by term, where Σ p'·d can go negative.
At a KL of 5e-9 the relative error is about 1e-4 (tests/test_rows_triton.py).
Where |d| is huge, p'·e^{−d} is p.
"""

import torch
from torch import Tensor

from .logits import LogitTransform
from .rows import Rows

# Beyond this |d|, expm1 may overflow to inf · 0; p' · e^{-d} = p is used instead.
SAFE_D = 60.0


def log_ratio_shift(norms: Tensor) -> Tensor:
    """(C,) what z' − z exceeds log p' − log p by."""
    return (norms[2] - norms[0]) + (norms[3] - norms[1])


def log_ratio(z: Tensor, zr: Tensor, norms: Tensor) -> Tensor:
    """d = log p' − log p, from the difference of the logits.

    Next to the reference z' − z is exact in floating point, while two log-probabilities have each
    been rounded at their own size.
    """
    return (zr - z).sub_(log_ratio_shift(norms)[:, None])


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


def gradient_by_logits(
    outputs: tuple[str, ...],
    lp: Tensor,
    lr: Tensor | None,
    d: Tensor | None,
    stats: Tensor,
    cotangents: Tensor,
    block: Rows,
) -> Tensor:
    """The formula of `gradient` before the chain rule, as p ⊙ (…) plus the target's term."""
    value = dict(zip(outputs, stats[:, :, None], strict=True))
    cot = dict(zip(outputs, cotangents[:, :, None], strict=True))
    p = lp.exp()
    factor = torch.zeros_like(p) if "logp" not in cot else (-cot["logp"]).expand_as(p).clone()
    if "entropy" in cot:
        factor.sub_((lp + value["entropy"]).mul_(cot["entropy"]))
    if "log_sum_sq" in cot:
        factor.add_(torch.expm1(lp - value["log_sum_sq"]).mul_(cot["log_sum_sq"]), alpha=2)
    extra = None
    if lr is not None and d is not None and ("kl" in cot or "reverse_kl" in cot):
        near = None if within(d, SAFE_D) else d.abs() <= SAFE_D
        if "kl" in cot:  # p − p' = −p·expm1(d) keeps its digits where p' ≈ p
            if near is None:
                factor.sub_(torch.expm1(d).mul_(cot["kl"]))
            else:
                extra = torch.where(
                    near, -p * torch.expm1(torch.where(near, d, 0)), p - lr.exp()
                ).mul_(cot["kl"])
        if "reverse_kl" in cot:
            factor.sub_((d + value["reverse_kl"]).mul_(cot["reverse_kl"]))
    dz = p.mul(factor)
    if factor.is_cuda or not bool(torch.isfinite(factor).all()):
        dz = torch.where(p == 0, 0, dz)  # a masked class has no gradient
    if extra is not None:
        dz.add_(extra)
    if "logp" in cot:
        add_at_target(dz, block, cot["logp"])
    return dz


def add_at_target(dz: Tensor, block: Rows, values: Tensor) -> None:
    """dz[i, target_i] += values[i] where the target lies in this slice of the vocabulary."""
    column = block.targets - block.first_class
    inside = (column >= 0) & (column < dz.shape[1])
    column = column.clamp(0, dz.shape[1] - 1)[:, None]
    dz.scatter_add_(1, column, torch.where(inside[:, None], values, 0))


def logits(raw: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """Raw products → logits; `raw` itself, never written to, where nothing changes it."""
    if transform.identity:
        return raw if bias is None else raw + bias
    z = (raw if bias is None else raw + bias) * transform.scale
    if transform.softcap:
        z.div_(transform.softcap).tanh_().mul_(transform.softcap)
        if bias is not None:
            z.masked_fill_(bias == -torch.inf, -torch.inf)
    return z.div_(transform.temperature)


def chain(z: Tensor, transform: LogitTransform) -> Tensor | float:
    """d logit / d raw, from the logit itself."""
    slope = transform.scale / transform.temperature
    if not transform.softcap:
        return slope
    tanh = z * (transform.temperature / transform.softcap)
    inside = tanh.mul_(tanh).neg_().add_(1).mul_(slope)
    return inside.masked_fill_(z == -torch.inf, 0)


def fit(lp: Tensor, width: int) -> Tensor:
    """Cut or extend with −inf to `width` classes."""
    if lp.shape[1] >= width:
        return lp[:, :width]
    return torch.nn.functional.pad(lp, (0, width - lp.shape[1]), value=-torch.inf)


def within(d: Tensor, bound: float) -> bool:
    """Whether every |d| ≤ bound; False for NaN. On a GPU, False without a look (no host sync)."""
    if d.is_cuda:
        return False
    low, high = torch.aminmax(d)
    return bool(low >= -bound) and bool(high <= bound)
