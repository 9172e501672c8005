"""Row operations in plain torch: raw logits → per-token statistics, and their gradient.

Three functions, with the same signatures as in `rows_triton`: `normalisers`, `class_sums` and
`gradient`. All read raw logits (the bare matrix product), of the whole vocabulary or of a slice of
it, and leave them as they are; only `gradient` may write over them.
Work goes by blocks of rows small enough that all temporaries stay in the processor's cache.
The formulas and their numerics are in `torch_math`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .rows import Rows
from .torch_math import (
    SAFE_D,
    add_at_target,
    chain,
    class_sum,
    fit,
    gradient_by_logits,
    log_ratio,
    log_ratio_shift,
    logits,
    within,
)

# Bytes of logits a block: a CPU's cache; on a GPU enough rows to fill it, within the budget.
_BLOCK_BYTES, _GPU_BLOCK_BYTES = 1 << 20, 32 << 20


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
        z = logits(block.raw, block.bias, block.transform)
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
        z = logits(block.raw, block.bias, block.transform)
        lp = (z - norms[0, here, None]).sub_(norms[1, here, None])
        lr = d = None
        if block.ref is not None:
            zr = logits(block.ref, block.ref_bias, block.transform)
            lr = (zr - norms[2, here, None]).sub_(norms[3, here, None])
            width = max(z.shape[1], zr.shape[1])
            d = log_ratio(fit(z, width), fit(zr, width), norms[:, here])
        for k, name in enumerate(outputs):
            out[k, here] = class_sum(name, lp, lr, d)


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
        z = logits(block.raw, block.bias, transform)
        d = torch.sub(logits(block.ref, block.ref_bias, transform), z, out=work[0, :rows])
        d.sub_(log_ratio_shift(norms)[:, None])
        if not within(d, SAFE_D):
            return False
        change = torch.expm1(d, out=work[1, :rows])  # p'/p − 1
        p = torch.sub(z, norms[0, :, None], out=out).sub_(norms[1, :, None]).exp_()
        if kl_sum is not None:  # p'(d + e^{−d} − 1) = p(d + d·c − c), c = expm1(d)
            terms = torch.addcmul(d, d, change, out=d).sub_(change).mul_(p)
            kl_sum.copy_(terms.sum(1)).clamp_min_(0)
        change.mul_(cot["kl"] * -slope)
        p.mul_(change.sub_(cot["logp"] * slope) if "logp" in cot else change)
    else:
        z = logits(block.raw, block.bias, transform)
        p = torch.sub(z, norms[0, :, None], out=out).exp_()
        p.mul_(cot["logp"] * (-slope) * torch.exp(-norms[1])[:, None])
    if "logp" in cot:
        add_at_target(out, block, cot["logp"] * slope)
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
    z = logits(block.raw, block.bias, block.transform)
    if z is block.raw:
        z = z.clone()
    slope = chain(z, block.transform)
    norms = norms[:, :, None]
    lr = d = None
    if block.ref is not None:
        zr = logits(block.ref, block.ref_bias, block.transform)
        if kl_sum is not None:
            class_sums(block, ("kl",), norms[:, :, 0], kl_sum[None])
        zr = fit(zr, z.shape[1])
        d = log_ratio(z, zr, norms[:, :, 0])
        lr = (zr - norms[2]).sub_(norms[3])
    lp = z.sub_(norms[0]).sub_(norms[1])
    dz = gradient_by_logits(outputs, lp, lr, d, stats, cotangents, block)
    out.copy_(dz.mul_(slope))


def _blocks(rows: Rows) -> Iterator[tuple[Rows, slice]]:
    """Blocks of rows that fit the cache, with the places of their rows."""
    count, width = rows.raw.shape
    most = _GPU_BLOCK_BYTES if rows.raw.is_cuda else _BLOCK_BYTES
    size = max(1, most // max(1, width * rows.raw.element_size()))
    for start in range(0, count, size):
        yield rows.block(start, min(count, start + size)), slice(start, start + size)
