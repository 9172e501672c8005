"""Sums over classes: the terms of KLs, of the entropy, and squares of probabilities."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core.logits import LogitsBlock
from ...core.outputs import KLS, SUMS
from .functions import VARYING, kl_terms, load_logits, probability, reverse_kl_terms
from .launch import Launch, both, check_strides, launch, options, padding, scaling_of, slot, widths


def class_sums(
    block: LogitsBlock,
    outputs: tuple[str, ...],
    norms: Tensor,  # (4, C) fp32
    out: Tensor,  # (len(outputs), C) fp32
    how: Launch | None = None,
) -> None:
    """See `backends.torch.class_sums`. `how` overrides `launch`, for tuning."""
    check_strides(block.raw, block.ref, block.bias, block.ref_bias, norms, out)
    two = bool(KLS & set(outputs))
    width, ref_width = widths(block, two)
    how = how or launch(max(width, ref_width), heads=1 + two)
    blocks = max(1, triton.cdiv(max(width, ref_width), how.block))
    partial = out.new_empty(len(outputs), blocks, block.raw.shape[0])
    class_sums_kernel[(block.raw.shape[0], blocks)](
        **both(block, two),
        norms=norms,
        partial=partial,
        norms_stride=norms.stride(0),
        partial_plane=partial.stride(0),
        partial_stride=partial.stride(1),
        width=width,
        ref_width=ref_width,
        **scaling_of(block),
        REF_BIAS=two and block.ref_bias is not None,
        **padding(block, two),
        **{name.upper(): slot(name, outputs) for name in SUMS},
        **options(how),
    )
    torch.sum(partial, dim=1, out=out)


@triton.jit(do_not_specialize=VARYING)
def class_sums_kernel(
    raw,  # (C, S)
    ref,  # (C, S')
    bias,  # (S,)
    ref_bias,  # (S',)
    norms,  # (4, C)
    partial,  # (number of outputs, blocks, C) written
    raw_stride,
    ref_stride,
    norms_stride,
    partial_plane,
    partial_stride,
    width,
    ref_width,
    scale,
    softcap,
    inv_temp,
    BIAS: tl.constexpr,
    REF_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    PAD: tl.constexpr,
    REF_PAD: tl.constexpr,
    KL: tl.constexpr,  # an output's row in `partial`, −1 where it was not asked for
    REVERSE_KL: tl.constexpr,
    ENTROPY: tl.constexpr,
    LOG_SUM_SQ: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    row = raw + i * raw_stride
    here = partial + block.to(tl.int64) * partial_stride + i
    z = load_logits(row, bias, columns, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, PAD)
    top = tl.load(norms + i)
    log_sum = tl.load(norms + norms_stride + i)
    p = probability(z, top, log_sum)
    if ENTROPY >= 0:
        lp = (z - top) - log_sum
        terms = tl.where(lp == float("-inf"), 0.0, -p * lp)
        tl.store(here + ENTROPY * partial_plane, tl.sum(terms, axis=0))
    if LOG_SUM_SQ >= 0:
        tl.store(here + LOG_SUM_SQ * partial_plane, tl.sum(p * p, axis=0))
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
        # z' − z is exact next to the reference; two rounded log-probabilities are not.
        d = (zr - z) - ((ref_top - top) + (ref_log_sum - log_sum))
        if KL >= 0:
            tl.store(here + KL * partial_plane, tl.sum(kl_terms(p, q, d), axis=0))
        if REVERSE_KL >= 0:
            tl.store(here + REVERSE_KL * partial_plane, tl.sum(reverse_kl_terms(p, q, d), axis=0))
