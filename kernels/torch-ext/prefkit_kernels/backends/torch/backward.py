"""The gradient by the raw logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.logits import LogitsBlock, LogitScaling
from .forward import class_sums
from .functions import SAFE_D, fit, log_ratio, log_ratio_shift, logits, parts, within


def gradient(
    block: LogitsBlock,
    outputs: tuple[str, ...],
    stats: Tensor,  # (len(outputs), C); those of "logp" and "kl" are not read
    norms: Tensor,  # (4, C)
    cotangents: Tensor,  # (len(outputs), C)
    out: Tensor,  # (C, S): gradient by the raw logits, overwritten; may be block.raw itself
    kl_sum: Tensor | None = None,  # (C,), overwritten: what `class_sums` gives for "kl"
) -> None:
    """dL/d raw logits for any slice of the vocabulary, given ∂L/∂stats.

    dz = a(1_y − p) + b(p − p') + c·p⊙((lp − lr) − KL(p‖p')) − e·p⊙(lp + H)
         + 2f(p²/Σp² − p), then through temperature, softcap and scale.
    """
    lean = set(outputs) <= {"logp", "kl"} and not block.scaling.softcap and not out.is_cuda
    work = out.new_empty(0)
    for part, here in parts(block):
        cot, dz = cotangents[:, here], out[here]
        sums = None if kl_sum is None else kl_sum[here]
        if lean and out.dtype == block.raw.dtype:
            work = work if len(work) else out.new_empty(2, *part.raw.shape)
            if _lean_gradient(part, outputs, norms[:, here], cot, dz, sums, work):
                continue
        _careful_gradient(part, outputs, stats[:, here], norms[:, here], cot, dz, sums)


def _lean_gradient(
    part: LogitsBlock,
    outputs: tuple[str, ...],
    norms: Tensor,
    cotangents: Tensor,
    out: Tensor,
    kl_sum: Tensor | None,
    work: Tensor,  # (2, at least C, S) scratch that stays in the cache from part to part
) -> bool:
    """`gradient` for logp and kl without temporaries: dz = p ⊙ (−a − b·expm1(d)) + a·1_y.

    False, with nothing written, where some |d| is too large for it (or a class is masked).
    """
    cot = dict(zip(outputs, cotangents[:, :, None]))
    count, scaling = len(part.raw), part.scaling
    slope = scaling.scale / scaling.temperature
    change = None
    if "kl" in cot:
        assert part.ref is not None, "a KL has a reference"
        if part.ref.shape[1] != part.raw.shape[1]:
            return False
        z = logits(part.raw, part.bias, scaling)
        d = torch.sub(logits(part.ref, part.ref_bias, scaling), z, out=work[0, :count])
        d.sub_(log_ratio_shift(norms)[:, None])
        if not within(d, SAFE_D):
            return False
        change = torch.expm1(d, out=work[1, :count])  # p'/p − 1
        p = torch.sub(z, norms[0, :, None], out=out).sub_(norms[1, :, None]).exp_()
        if kl_sum is not None:  # p'(d + e^{−d} − 1) = p(d + d·c − c), c = expm1(d)
            terms = torch.addcmul(d, d, change, out=d).sub_(change).mul_(p)
            kl_sum.copy_(terms.sum(1)).clamp_min_(0)
        change.mul_(cot["kl"] * -slope)
        p.mul_(change.sub_(cot["logp"] * slope) if "logp" in cot else change)
    else:
        z = logits(part.raw, part.bias, scaling)
        p = torch.sub(z, norms[0, :, None], out=out).exp_()
        p.mul_(cot["logp"] * (-slope) * torch.exp(-norms[1])[:, None])
    if "logp" in cot:
        add_at_target(out, part, cot["logp"] * slope)
    return True


def _careful_gradient(
    part: LogitsBlock,
    outputs: tuple[str, ...],
    stats: Tensor,
    norms: Tensor,
    cotangents: Tensor,
    out: Tensor,
    kl_sum: Tensor | None,
) -> None:
    """`gradient` for every output, any |d|, masked classes and softcaps."""
    z = logits(part.raw, part.bias, part.scaling)
    if z is part.raw:
        z = z.clone()
    slope = chain(z, part.scaling)
    norms = norms[:, :, None]
    lr = d = None
    if part.ref is not None:
        zr = logits(part.ref, part.ref_bias, part.scaling)
        if kl_sum is not None:
            class_sums(part, ("kl",), norms[:, :, 0], kl_sum[None])
        zr = fit(zr, z.shape[1])
        d = log_ratio(z, zr, norms[:, :, 0])
        lr = (zr - norms[2]).sub_(norms[3])
    lp = z.sub_(norms[0]).sub_(norms[1])
    dz = gradient_by_logits(outputs, lp, lr, d, stats, cotangents, part)
    out.copy_(dz.mul_(slope))


def gradient_by_logits(
    outputs: tuple[str, ...],
    lp: Tensor,
    lr: Tensor | None,
    d: Tensor | None,
    stats: Tensor,
    cotangents: Tensor,
    part: LogitsBlock,
) -> Tensor:
    """The formula of `gradient` before the chain rule, as p ⊙ (…) plus the target's term."""
    value = dict(zip(outputs, stats[:, :, None]))
    cot = dict(zip(outputs, cotangents[:, :, None]))
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
        add_at_target(dz, part, cot["logp"])
    return dz


def add_at_target(dz: Tensor, part: LogitsBlock, values: Tensor) -> None:
    """dz[i, target_i] += values[i] where the target lies in this slice of the vocabulary."""
    column = part.targets - part.first_class
    inside = (column >= 0) & (column < dz.shape[1])
    column = column.clamp(0, dz.shape[1] - 1)[:, None]
    dz.scatter_add_(1, column, torch.where(inside[:, None], values, 0))


def chain(z: Tensor, scaling: LogitScaling) -> Tensor | float:
    """d logit / d raw, from the logit itself."""
    slope = scaling.scale / scaling.temperature
    if not scaling.softcap:
        return slope
    tanh = z * (scaling.temperature / scaling.softcap)
    inside = tanh.mul_(tanh).neg_().add_(1).mul_(slope)
    return inside.masked_fill_(z == -torch.inf, 0)
