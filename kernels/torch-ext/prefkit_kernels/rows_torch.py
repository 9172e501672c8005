"""Row operations in plain torch: raw logits → per-token statistics, and their gradient.

Three functions, with the same signatures as in `rows_triton`: `normalisers`, `class_sums` and
`gradient`. All read raw logits (the bare matrix product), of the whole vocabulary or of a slice of
it, and leave them as they are; only `gradient` may write over them.
Work goes by blocks of rows small enough that all temporaries stay in the processor's cache.

Numerics. With lp = log p (policy), lr = log p' (reference) and d = lr − lp, each class adds
p'·(d + e^{−d} − 1) ≥ 0 to KL(ref‖policy): non-negative term by term, where Σ p'·d can go negative.
At a KL of 5e-9 the relative error is about 1e-4 (tests/test_rows_triton.py).
Where |d| is huge, p'·e^{−d} is p.
"""

from collections.abc import Iterator
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


def normalisers(rows: Rows, out: Tensor) -> None:
    """What makes probabilities of the rows of `rows.raw`; the reference is not looked at.

    Args:
        rows: any slice of the vocabulary.
        out: (3, C), overwritten: max z, log Σ exp(z − max) (kept apart, so that a common offset of
            1e4 costs no digits of a difference), and the target's logit: −inf where the target is
            no class of this slice, NaN for a negative one.
    """
    width = rows.raw.shape[1]
    for block, here in _blocks(rows):
        z = _logits(block.raw, block.bias, block.transform)
        top = z.amax(1)
        column = block.targets - block.first_class
        inside = (column >= 0) & (column < width)
        found = z.gather(1, column.clamp(0, width - 1)[:, None]).squeeze(1)
        found = torch.where(inside, found, -torch.inf)
        out[2, here] = torch.where(block.targets < 0, torch.nan, found)
        # A slice of masked classes only has the sum 0, not NaN: other slices may hold the rest.
        shift = torch.where(top == -torch.inf, 0, top)[:, None]
        shifted = z.sub_(shift) if z is not block.raw else z - shift
        out[0, here] = top
        out[1, here] = shifted.exp_().sum(1).log_()


def class_sums(
    rows: Rows,
    outputs: tuple[str, ...],  # of "kl", "reverse_kl", "entropy", "log_sum_sq"
    norms: Tensor,  # (4, C): max and log-sum of policy, of reference, over the whole vocabulary
    out: Tensor,  # (len(outputs), C), overwritten
) -> None:
    """Sums over the classes of this slice: KL terms, −p·log p, and p² (its log is the caller's)."""
    for block, here in _blocks(rows):
        z = _logits(block.raw, block.bias, block.transform)
        lp = (z - norms[0, here, None]).sub_(norms[1, here, None])
        lr = d = None
        if block.ref is not None:
            zr = _logits(block.ref, block.ref_bias, block.transform)
            lr = (zr - norms[2, here, None]).sub_(norms[3, here, None])
            width = max(z.shape[1], zr.shape[1])
            d = _log_ratio(_fit(z, width), _fit(zr, width), norms[:, here])
        for k, name in enumerate(outputs):
            out[k, here] = _class_sum(name, lp, lr, d)


def gradient(
    rows: Rows,
    outputs: tuple[str, ...],
    stats: Tensor,  # (len(outputs), C); those of "logp" and "kl" are not read
    norms: Tensor,  # (4, C)
    cotangents: Tensor,  # (len(outputs), C)
    out: Tensor,  # (C, S): gradient by the raw logits, overwritten; may be rows.raw itself
    kl_sum: Tensor | None = None,  # (C,), overwritten: what `class_sums` gives for "kl"
) -> None:
    """dL/d raw logits for any slice of the vocabulary, given ∂L/∂stats.

    dz = a(1_y − p) + b(p − p') + c·p⊙((lp − lr) − KL(p‖p')) − e·p⊙(lp + H)
         + 2f(p²/Σp² − p), then through temperature, softcap and scale.
    """
    lean = set(outputs) <= {"logp", "kl"} and not rows.transform.softcap and not out.is_cuda
    work = out.new_empty(0)
    for block, here in _blocks(rows):
        cot, dz = cotangents[:, here], out[here]
        sums = None if kl_sum is None else kl_sum[here]
        if lean and out.dtype == rows.raw.dtype:
            work = work if len(work) else out.new_empty(2, *block.raw.shape)
            if _lean_gradient(block, outputs, norms[:, here], cot, dz, sums, work):
                continue
        _careful_gradient(block, outputs, stats[:, here], norms[:, here], cot, dz, sums)


def _lean_gradient(
    block: Rows,
    outputs: tuple[str, ...],
    norms: Tensor,
    cotangents: Tensor,
    out: Tensor,
    kl_sum: Tensor | None,
    work: Tensor,  # (2, at least C, S) scratch that stays in the cache from block to block
) -> bool:
    """`gradient` for logp and kl without temporaries: dz = p ⊙ (−a − b·expm1(d)) + a·1_y.

    False, with nothing written, where some |d| is too large for it (or a class is masked).
    """
    cot = dict(zip(outputs, cotangents[:, :, None], strict=True))
    rows, transform = len(block.raw), block.transform
    slope = transform.scale / transform.temperature
    change = None
    if "kl" in cot:
        assert block.ref is not None, "a KL has a reference"
        if block.ref.shape[1] != block.raw.shape[1]:
            return False
        z = _logits(block.raw, block.bias, transform)
        d = torch.sub(_logits(block.ref, block.ref_bias, transform), z, out=work[0, :rows])
        d.sub_(_log_ratio_shift(norms)[:, None])
        if not _within(d, _SAFE_D):
            return False
        change = torch.expm1(d, out=work[1, :rows])  # p'/p − 1
        p = torch.sub(z, norms[0, :, None], out=out).sub_(norms[1, :, None]).exp_()
        if kl_sum is not None:  # p'(d + e^{−d} − 1) = p(d + d·c − c), c = expm1(d)
            terms = torch.addcmul(d, d, change, out=d).sub_(change).mul_(p)
            kl_sum.copy_(terms.sum(1)).clamp_min_(0)
        change.mul_(cot["kl"] * -slope)
        p.mul_(change.sub_(cot["logp"] * slope) if "logp" in cot else change)
    else:
        z = _logits(block.raw, block.bias, transform)
        p = torch.sub(z, norms[0, :, None], out=out).exp_()
        p.mul_(cot["logp"] * (-slope) * torch.exp(-norms[1])[:, None])
    if "logp" in cot:
        _add_at_target(out, block, cot["logp"] * slope)
    return True


def _careful_gradient(
    block: Rows,
    outputs: tuple[str, ...],
    stats: Tensor,
    norms: Tensor,
    cotangents: Tensor,
    out: Tensor,
    kl_sum: Tensor | None,
) -> None:
    """`gradient` for every output, any |d|, masked classes and softcaps."""
    z = _logits(block.raw, block.bias, block.transform)
    if z is block.raw:
        z = z.clone()
    chain = _chain(z, block.transform)
    norms = norms[:, :, None]
    lr = d = None
    if block.ref is not None:
        zr = _logits(block.ref, block.ref_bias, block.transform)
        if kl_sum is not None:
            class_sums(block, ("kl",), norms[:, :, 0], kl_sum[None])
        zr = _fit(zr, z.shape[1])
        d = _log_ratio(z, zr, norms[:, :, 0])
        lr = (zr - norms[2]).sub_(norms[3])
    lp = z.sub_(norms[0]).sub_(norms[1])
    dz = _gradient_by_logits(outputs, lp, lr, d, stats, cotangents, block)
    out.copy_(dz.mul_(chain))


def _log_ratio_shift(norms: Tensor) -> Tensor:
    """(C,) what z' − z exceeds log p' − log p by."""
    return (norms[2] - norms[0]) + (norms[3] - norms[1])


def _log_ratio(z: Tensor, zr: Tensor, norms: Tensor) -> Tensor:
    """d = log p' − log p, from the difference of the logits.

    Next to the reference z' − z is exact in floating point, while two log-probabilities have each
    been rounded at their own size.
    """
    return (zr - z).sub_(_log_ratio_shift(norms)[:, None])


def _class_sum(name: str, lp: Tensor, lr: Tensor | None, d: Tensor | None) -> Tensor:
    if name == "entropy":
        return -_expectation(lp, lp)
    if name == "log_sum_sq":
        return (2 * lp).exp_().sum(1)
    assert lr is not None, "token_stats refuses a KL without a reference"
    assert d is not None, "made with lr"
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
    """Raw products → logits; `raw` itself, never written to, where nothing changes it."""
    if transform.identity:
        return raw if bias is None else raw + bias
    z = (raw if bias is None else raw + bias) * transform.scale
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


def _blocks(rows: Rows) -> Iterator[tuple[Rows, slice]]:
    """Blocks of rows that fit the cache, with the places of their rows."""
    count, width = rows.raw.shape
    most = _GPU_BLOCK_BYTES if rows.raw.is_cuda else _BLOCK_BYTES
    size = max(1, most // max(1, width * rows.raw.element_size()))
    for start in range(0, count, size):
        yield rows.block(start, min(count, start + size)), slice(start, start + size)
