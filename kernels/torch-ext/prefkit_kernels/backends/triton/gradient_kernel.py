"""The gradient by the raw logits, for any cotangents of the statistics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core.buffers import is_padded
from ...core.logits import LogitsBlock
from ...core.outputs import KLS, SUMS
from .functions import VARYING, difference, exp, kl_terms, load_logits, padded, probability
from .launch import Launch, both, check_strides, launch, options, padding, scaling_of, slot, widths


def gradient(
    block: LogitsBlock,
    outputs: tuple[str, ...],
    stats: Tensor,  # (len(outputs), C) fp32
    norms: Tensor,  # (4, C) fp32
    cotangents: Tensor,  # (len(outputs), C) fp32
    out: Tensor,  # (C, S) fp32 | bf16 | fp16
    kl_sum: Tensor | None = None,  # (C,) fp32
    how: Launch | None = None,
) -> None:
    """See `backends.torch.gradient`. `out` may have a lower precision than the logits; it may be
    `block.raw` itself, since each element is written by the program that has read it.
    `how` overrides `launch`, for tuning."""
    check_strides(block.raw, block.ref, block.bias, block.ref_bias, block.targets)
    check_strides(stats, norms, cotangents, out, kl_sum)
    two = bool(KLS & set(outputs))
    width, ref_width = widths(block, two)
    # A class of the reference alone has no gradient here, but it is part of the KL.
    columns = max(width, ref_width) if kl_sum is not None else width
    how = how or launch(columns, heads=1 + two)
    blocks = max(1, triton.cdiv(columns, how.block))
    partial = norms.new_empty(blocks if kl_sum is not None else 0, block.raw.shape[0])
    gradient_kernel[(block.raw.shape[0], blocks)](
        **both(block, two),
        targets=block.targets,
        stats=stats,
        norms=norms,
        cotangents=cotangents,
        dz=out,
        partial=partial,
        stats_stride=stats.stride(0),
        norms_stride=norms.stride(0),
        cotangents_stride=cotangents.stride(0),
        dz_stride=out.stride(0),
        partial_stride=partial.stride(0),
        width=width,
        ref_width=ref_width,
        first_class=block.first_class,
        **scaling_of(block),
        REF_BIAS=two and block.ref_bias is not None,
        **padding(block, two),
        DZ_PAD=is_padded(out),
        KL_SUM=kl_sum is not None,
        LOGP=slot("logp", outputs),
        **{name.upper(): slot(name, outputs) for name in SUMS},
        **options(how),
    )
    if kl_sum is not None:
        torch.sum(partial, dim=0, out=kl_sum)


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    raw,  # (C, S)
    ref,  # (C, S')
    bias,  # (S,)
    ref_bias,  # (S',)
    targets,  # (C,)
    stats,  # (K, C)
    norms,  # (4, C)
    cotangents,  # (K, C)
    dz,  # (C, S) written; may be raw: this program alone reads what it overwrites
    partial,  # (blocks, C) written where KL_SUM
    raw_stride,
    ref_stride,
    stats_stride,
    norms_stride,
    cotangents_stride,
    dz_stride,
    partial_stride,
    width,
    ref_width,
    first_class,
    scale,
    softcap,
    inv_temp,
    BIAS: tl.constexpr,
    REF_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    PAD: tl.constexpr,
    REF_PAD: tl.constexpr,
    DZ_PAD: tl.constexpr,
    KL_SUM: tl.constexpr,
    LOGP: tl.constexpr,  # an output's row in `stats` and `cotangents`, −1 where it is not there
    KL: tl.constexpr,
    REVERSE_KL: tl.constexpr,
    ENTROPY: tl.constexpr,
    LOG_SUM_SQ: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    row = raw + i * raw_stride
    z = load_logits(row, bias, columns, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, PAD)
    top = tl.load(norms + i)
    log_sum = tl.load(norms + norms_stride + i)
    lp = (z - top) - log_sum
    p = probability(z, top, log_sum)
    grad = tl.zeros((BLOCK,), tl.float32)
    if LOGP >= 0:
        a = tl.load(cotangents + LOGP * cotangents_stride + i)
        target = tl.load(targets + i) - first_class
        hit = columns == tl.where((target >= 0) & (target < width), target, -1).to(tl.int32)
        grad += tl.where(hit, a, 0.0) - a * p
    if ENTROPY >= 0:
        e = tl.load(cotangents + ENTROPY * cotangents_stride + i)
        h = tl.load(stats + ENTROPY * stats_stride + i)
        grad -= tl.where(p == 0, 0.0, e * p * (lp + h))
    if LOG_SUM_SQ >= 0:
        f = tl.load(cotangents + LOG_SUM_SQ * cotangents_stride + i)
        log_squares = tl.load(stats + LOG_SUM_SQ * stats_stride + i)
        grad += 2.0 * f * p * (exp(lp - log_squares) - 1.0)
    if KL >= 0 or REVERSE_KL >= 0:
        ref_row = ref + i * ref_stride
        zr = load_logits(
            ref_row,
            ref_bias,
            columns,
            ref_width,
            scale,
            softcap,
            inv_temp,
            REF_BIAS,
            SCALE,
            CAP,
            REF_PAD,
        )
        ref_top = tl.load(norms + 2 * norms_stride + i)
        ref_log_sum = tl.load(norms + 3 * norms_stride + i)
        q = probability(zr, ref_top, ref_log_sum)
        d = (zr - z) - ((ref_top - top) + (ref_log_sum - log_sum))
        if KL >= 0:
            b = tl.load(cotangents + KL * cotangents_stride + i)
            grad -= b * difference(p, q, d)
        if REVERSE_KL >= 0:
            c = tl.load(cotangents + REVERSE_KL * cotangents_stride + i)
            reverse_kl = tl.load(stats + REVERSE_KL * stats_stride + i)
            grad -= tl.where(p == 0, 0.0, c * p * (d + reverse_kl))
        if KL_SUM:
            here = partial + block.to(tl.int64) * partial_stride + i
            tl.store(here, tl.sum(kl_terms(p, q, d), axis=0))
    if SCALE or CAP:
        grad *= scale * inv_temp
    if CAP:
        t = z * (1.0 / (inv_temp * softcap))
        grad *= 1.0 - t * t
    # A masked class has no probability, so no gradient, except as a (hopeless) target.
    if LOGP >= 0 and not CAP:
        grad = tl.where(z == float("-inf"), tl.where(hit, a * scale * inv_temp, 0.0), grad)
    else:
        grad = tl.where(z == float("-inf"), 0.0, grad)
    end = padded(width) if DZ_PAD else width
    tl.store(dz + i * dz_stride + columns, grad.to(dz.dtype.element_ty), mask=columns < end)
