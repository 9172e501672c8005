"""The Triton kernels: one program reads one block of columns of one row.

The grid is (rows, blocks of columns): rows lie on axis 0 (the other axes end at 65535), and a few
rows of a large vocabulary make as many programs as many rows of a small one. What a row needs from
all of its blocks goes through a small fp32 buffer, `partial`, with one number a block and row,
summed afterwards in a fixed order: no atomics, so the same input gives the same bits.

Row offsets are int64 (rows × V passes 2³¹ at 14 k rows of a 152 k vocabulary). What changes from
call to call is not specialised, so that it does not compile a kernel anew. Row strides and widths
are: a width divisible by 16 lets loads be 128 bits wide, and so does padding (`buffers`).

`rows_triton` launches these kernels; the formulas are in `rows_torch`.
"""

import triton
import triton.language as tl

from .triton_math import difference, exp, kl_terms, probability, rescale, reverse_kl_terms, tanh

# Read or written one number a row, so their alignment does not matter; and counts.
_VARYING = (
    *("targets", "norms", "stats", "cotangents", "partial", "out"),
    *("norms_stride", "stats_stride", "cotangents_stride", "out_stride"),
    *("partial_plane", "partial_stride", "first_class", "rows", "blocks"),
)


@triton.jit
def _padded(width):
    """`buffers.padded`, in a form from which the compiler sees the factor 16."""
    return (width + 15) // 16 * 16


@triton.jit
def _logits(
    row,
    bias,
    columns,
    width,
    scale,
    softcap,
    inv_temp,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    PAD: tl.constexpr,
):
    """Logits of some columns of a row; −inf outside of 0 ≤ column < width.

    Where rows are padded (PAD) they are read up to the next multiple of 16, so that no vector of
    a load is cut in two by the mask.
    """
    inside = (columns >= 0) & (columns < width)
    readable = (columns >= 0) & (columns < _padded(width)) if PAD else inside
    z = tl.load(row + columns, mask=readable, other=float("-inf")).to(tl.float32)
    if PAD:
        z = tl.where(inside, z, float("-inf"))
    if BIAS:
        z += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    if SCALE or CAP:
        scaled = z * scale
        if CAP:
            scaled = softcap * tanh(scaled * (1.0 / softcap))
        z = tl.where(z == float("-inf"), z, scaled * inv_temp)
    return z


@triton.jit(do_not_specialize=_VARYING)
def norms_kernel(
    raw,  # (C, S)
    bias,  # (S,)
    targets,  # (C,)
    partial,  # (2, blocks, C) written: maximum m of a block, Σ exp(z − m)
    out,  # (3, C), row 2 written: the target's logit
    raw_stride,
    partial_plane,
    partial_stride,
    out_stride,
    width,
    first_class,
    scale,
    softcap,
    inv_temp,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    PAD: tl.constexpr,  # whether rows of raw are padded, see `buffers`
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    row = raw + i * raw_stride
    columns = block * BLOCK + tl.arange(0, BLOCK)
    z = _logits(row, bias, columns, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, PAD)
    top = tl.max(z, axis=0)
    # A block of masked classes alone adds 0, not exp(−inf + inf).
    total = tl.sum(exp(z - tl.where(top == float("-inf"), 0.0, top)), axis=0)
    here = partial + block.to(tl.int64) * partial_stride + i
    tl.store(here, top)
    tl.store(here + partial_plane, total)
    if block == 0:
        target = tl.load(targets + i)
        column = target - first_class
        hit = _logits(row, bias, column, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, PAD)
        tl.store(out + 2 * out_stride + i, tl.where(target < 0, float("nan"), hit))


@triton.jit(do_not_specialize=_VARYING)
def combine_norms_kernel(
    partial,  # (2, blocks, C) of `norms_kernel`
    out,  # (3, C), rows 0 and 1 written: maximum, log Σ exp(z − maximum)
    partial_plane,
    partial_stride,
    out_stride,
    rows,
    blocks,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = tl.arange(0, BLOCKS)
    top = tl.full((BLOCKS, ROWS), float("-inf"), tl.float32)
    total = tl.zeros((BLOCKS, ROWS), tl.float32)
    start = 0
    while start < blocks:  # `range` over an argument fails interpreted by Triton 3.6, NumPy 2.4
        inside = (start + block < blocks)[:, None] & (i < rows)[None, :]
        place = (start + block).to(tl.int64)[:, None] * partial_stride + i[None, :]
        other_top = tl.load(partial + place, mask=inside, other=float("-inf"))
        other = tl.load(partial + partial_plane + place, mask=inside, other=0.0)
        higher = tl.maximum(top, other_top)
        total = rescale(total, top, higher) + rescale(other, other_top, higher)
        top = higher
        start += BLOCKS
    row_top = tl.max(top, axis=0)
    row_total = tl.sum(rescale(total, top, row_top[None, :]), axis=0)
    tl.store(out + i, row_top, mask=i < rows)
    tl.store(out + out_stride + i, tl.log(row_total), mask=i < rows)


@triton.jit(do_not_specialize=_VARYING)
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
    z = _logits(row, bias, columns, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, PAD)
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
        zr = _logits(
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


@triton.jit(do_not_specialize=_VARYING)
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
    z = _logits(row, bias, columns, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, PAD)
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
        zr = _logits(
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
    end = _padded(width) if DZ_PAD else width
    tl.store(dz + i * dz_stride + columns, grad.to(dz.dtype.element_ty), mask=columns < end)
