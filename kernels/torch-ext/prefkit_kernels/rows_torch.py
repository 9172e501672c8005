"""Row operations in plain torch: raw logits → per-token statistics, and their gradient.

Two functions, with the same signatures as in `rows_triton`: `statistics` and `gradient`. Both read
raw logits (the bare matrix product) and leave them as they are; `gradient` may write over them.
Work goes by blocks of rows small enough that all temporaries stay in the processor's cache.

Numerics. With lp = log p (policy), lr = log p' (reference) and d = lr − lp, each class adds
p'·(d + e^{−d} − 1) ≥ 0 to KL(ref‖policy): non-negative term by term, where Σ p'·d can go negative.
At a KL of 5e-9 the relative error is about 1e-4 (tests/test_rows_triton.py).
Where |d| is huge, p'·e^{−d} is p.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .logits import LogitTransform

# Bytes of logits a block: a CPU's cache; on a GPU enough rows to fill it, within the budget.
_BLOCK_BYTES, _GPU_BLOCK_BYTES = 1 << 20, 32 << 20
# Beyond this |d|, expm1 may overflow to inf · 0; p' · e^{-d} = p is used instead.
_SAFE_D = 60.0


@dataclass(frozen=True)
class Rows:
    """A block of raw logits and what is needed to read them.

    Attributes:
        raw: (C, S) policy logits before bias, scale, softcap and temperature.
        ref: (C, S') reference logits likewise, or None.
        bias, ref_bias: (S,), (S',) or None.
        targets: (C,) int64 class of each row.
        transform: scale, softcap, temperature (of both).
        first_class: class number of column 0 (a vocabulary slice starts there).
    """

    raw: Tensor
    ref: Tensor | None
    bias: Tensor | None
    ref_bias: Tensor | None
    targets: Tensor
    transform: LogitTransform
    first_class: int = 0

    def block(self, start: int, stop: int) -> "Rows":
        return Rows(
            self.raw[start:stop],
            None if self.ref is None else self.ref[start:stop],
            self.bias,
            self.ref_bias,
            self.targets[start:stop],
            self.transform,
            self.first_class,
        )


def statistics(
    rows: Rows,
    outputs: tuple[str, ...],
    stats: Tensor,  # (len(outputs), C), overwritten
    norms: Tensor,  # (4, C): max and log-sum of policy, of reference; overwritten
) -> None:
    """Per-row statistics over whole rows (every class present)."""
    for start, stop in _blocks(rows.raw):
        block = rows.block(start, stop)
        here = norms[:, start:stop]
        z = _logits(block.raw, block.bias, block.transform)
        lp, here[0], here[1] = _log_softmax(z)
        lr = d = None
        if block.ref is not None:
            zr = _logits(block.ref, block.ref_bias, block.transform)
            lr, here[2], here[3] = _log_softmax(zr)
            if "kl" in outputs or "reverse_kl" in outputs:
                width = max(z.shape[1], zr.shape[1])
                d = _log_ratio(_fit(z, width), _fit(zr, width), here)
        for k, name in enumerate(outputs):
            stats[k, start:stop] = _statistic(name, lp, lr, d, block.targets)


def gradient(
    rows: Rows,
    outputs: tuple[str, ...],
    stats: Tensor,  # (len(outputs), C) as computed by `statistics`
    norms: Tensor,  # (4, C)
    cotangents: Tensor,  # (len(outputs), C)
    out: Tensor,  # (C, S): gradient by the raw logits, overwritten; may be rows.raw itself
) -> None:
    """dL/d raw logits for any slice of the vocabulary, given ∂L/∂stats.

    dz = a(1_y − p) + b(p − p') + c·p⊙((lp − lr) − KL(p‖p')) − e·p⊙(lp + H)
         + 2f(p²/Σp² − p), then through temperature, softcap and scale.
    """
    for start, stop in _blocks(rows.raw):
        block = rows.block(start, stop)
        z = _logits(block.raw, block.bias, block.transform)
        chain = _chain(z, block.transform)
        here = norms[:, start:stop, None]
        lr = d = None
        if block.ref is not None:
            zr = _fit(_logits(block.ref, block.ref_bias, block.transform), z.shape[1])
            d = _log_ratio(z, zr, norms[:, start:stop])
            lr = zr.sub_(here[2]).sub_(here[3])
        lp = z.sub_(here[0]).sub_(here[1])
        dz = _gradient_by_logits(
            outputs, lp, lr, d, stats[:, start:stop], cotangents[:, start:stop], block
        )
        out[start:stop] = dz.mul_(chain)


def _log_ratio(z: Tensor, zr: Tensor, norms: Tensor) -> Tensor:
    """d = log p' − log p, from the difference of the logits.

    Next to the reference z' − z is exact in floating point, while two log-probabilities have each
    been rounded at their own size.
    """
    shift = (norms[2] - norms[0]) + (norms[3] - norms[1])
    return (zr - z).sub_(shift[:, None])


def _statistic(
    name: str, lp: Tensor, lr: Tensor | None, d: Tensor | None, targets: Tensor
) -> Tensor:
    if name == "logp":
        return lp.gather(1, targets[:, None]).squeeze(1)
    if name == "entropy":
        return -_expectation(lp, lp)
    if name == "log_sum_sq":
        return (2 * lp).logsumexp(1)
    assert lr is not None, "token_stats refuses these outputs without a reference"
    if name == "ref_logp":
        return lr.gather(1, targets[:, None]).squeeze(1)
    assert d is not None, "computed whenever a KL is asked for"
    lp, lr = _fit(lp, d.shape[1]), _fit(lr, d.shape[1])
    return _kl(lr, lp, d) if name == "kl" else _kl(lp, lr, -d)


def _kl(lq: Tensor, lp: Tensor, d: Tensor) -> Tensor:
    """Σ q·[log q − log p] with d = log q − log p, non-negative term by term."""
    q = lq.exp()
    if _within(d, _SAFE_D):
        return torch.expm1(-d).add_(d).mul_(q).sum(1).clamp_min_(0)
    p = lp.exp()
    near = d.abs() <= _SAFE_D
    terms = torch.where(near, q * (d + torch.expm1(torch.where(near, -d, 0))), q * d + (p - q))
    return torch.where(q == 0, p, terms).sum(1).clamp_min_(0)


def _expectation(lp: Tensor, values: Tensor) -> Tensor:
    """Σ p·values, where a masked class (0 · −inf) adds nothing and a real NaN stays."""
    if not lp.is_cuda:
        total = (lp.exp() * values).sum(1)
        if not bool(total.isnan().any()):
            return total
    return (lp.exp() * values.masked_fill(lp == -torch.inf, 0)).sum(1)


def _gradient_by_logits(
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
        near = None if _within(d, _SAFE_D) else d.abs() <= _SAFE_D
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
        _add_at_target(dz, block, cot["logp"])
    return dz


def _add_at_target(dz: Tensor, block: Rows, values: Tensor) -> None:
    """dz[i, target_i] += values[i] where the target lies in this slice of the vocabulary."""
    column = block.targets - block.first_class
    inside = (column >= 0) & (column < dz.shape[1])
    column = column.clamp(0, dz.shape[1] - 1)[:, None]
    dz.scatter_add_(1, column, torch.where(inside[:, None], values, 0))


def _logits(raw: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """Raw products → logits, in a new tensor."""
    z = raw.clone() if bias is None else raw + bias
    if transform.identity:
        return z
    z.mul_(transform.scale)
    if transform.softcap:
        z.div_(transform.softcap).tanh_().mul_(transform.softcap)
        if bias is not None:
            z.masked_fill_(bias == -torch.inf, -torch.inf)
    return z.div_(transform.temperature)


def _chain(z: Tensor, transform: LogitTransform) -> Tensor | float:
    """d logit / d raw, from the logit itself."""
    slope = transform.scale / transform.temperature
    if not transform.softcap:
        return slope
    tanh = z * (transform.temperature / transform.softcap)
    inside = tanh.mul_(tanh).neg_().add_(1).mul_(slope)
    return inside.masked_fill_(z == -torch.inf, 0)


def _log_softmax(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log-probabilities, row maximum, and log Σ exp(z − max): kept apart, so that a common offset
    of 1e4 costs no digits of the difference."""
    top = z.amax(1)
    lp = z.log_softmax(1)
    return lp, top, -lp.amax(1)


def _fit(lp: Tensor, width: int) -> Tensor:
    """Cut or extend with −inf to `width` classes."""
    if lp.shape[1] >= width:
        return lp[:, :width]
    return torch.nn.functional.pad(lp, (0, width - lp.shape[1]), value=-torch.inf)


def _within(d: Tensor, bound: float) -> bool:
    """Whether every |d| ≤ bound; False for NaN. On a GPU, False without a look (no host sync)."""
    if d.is_cuda:
        return False
    low, high = torch.aminmax(d)
    return bool(low >= -bound) and bool(high <= bound)


def _blocks(raw: Tensor) -> list[tuple[int, int]]:
    rows = raw.shape[0]
    most = _GPU_BLOCK_BYTES if raw.is_cuda else _BLOCK_BYTES
    size = max(1, most // (raw.shape[1] * raw.element_size()))
    return [(s, min(rows, s + size)) for s in range(0, rows, size)]
