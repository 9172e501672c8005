"""The gradient by the raw logits for log-probabilities and KLs, from operands."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....core.buffers import is_padded
from ....core.logits import LogitsBlock
from ..functions import excess, probability
from ..launch import scaling_arguments, slot
from .launch import Tile, check_strides, options, tile_for
from .products import VARYING, columns_of, halves, place_of, products, transformed


def gradient(
    block: LogitsBlock,
    outputs: tuple[str, ...],  # "logp", "kl" or both
    stats: Tensor,  # not read
    norms: Tensor,  # (4, C) fp32: max and log-sum of policy, of reference
    cotangents: Tensor,  # (len(outputs), C) fp32
    out: Tensor,  # (C, V) fp32 | bf16 | fp16, overwritten
    kl_sum: Tensor | None = None,  # (C,) fp32, overwritten
    how: Tile | None = None,
) -> None:
    """`backends.torch.gradient` by hidden @ weight.T, whose tiles are multiplied anew.

    dz = a(1_y − p) + b(p − p'), then through temperature, softcap and scale. Neither other
    outputs nor values of these are read. `how` overrides `tile`, for tuning.

    Args:
        block: with operands; those of the reference, whose D and V may be others, are read for "kl"
            alone.
        out: rows may be apart, with padding between them (`core.buffers`), which receives anything.
        kl_sum: what `backends.torch.class_sums` gives for "kl".
    """
    assert block.operands is not None, "small heads come with their operands"
    hidden, weight = block.operands
    bias, targets, scaling = block.bias, block.targets, block.scaling
    two = "kl" in outputs
    assert set(outputs) <= {"logp", "kl"}, "other outputs keep their logits"
    assert not two or block.ref_operands is not None, "a KL has a reference"
    ref_hidden, ref_weight, ref_bias = hidden, weight, bias
    if two and block.ref_operands is not None:
        (ref_hidden, ref_weight), ref_bias = block.ref_operands, block.ref_bias
    check_strides(hidden, weight, bias, ref_hidden, ref_weight, ref_bias)
    check_strides(targets, norms, cotangents, out, kl_sum)
    count, width = out.shape
    ref_width = ref_weight.shape[0] if two else 0
    # A class of the reference alone has no gradient here, but it is part of the KL.
    columns = max(width, ref_width) if kl_sum is not None else width
    biases = (bias, ref_bias) if two else (bias,)
    how = how or tile_for(hidden, scaling, biases, gradient=True)
    blocks = triton.cdiv(columns, how.classes)
    partial = norms.new_empty(blocks if kl_sum is not None else 0, count)
    if count and blocks:
        gradient_kernel[(triton.cdiv(count, how.tokens) * blocks,)](
            hidden=hidden,
            weight=weight if len(weight) else hidden,  # a row is read even where none counts
            bias=weight if bias is None else bias,
            ref_hidden=ref_hidden,
            ref_weight=ref_weight if len(ref_weight) else ref_hidden,
            ref_bias=ref_weight if ref_bias is None else ref_bias,
            targets=targets,
            norms=norms,
            cotangents=cotangents,
            dz=out,
            partial=partial,
            hidden_stride=hidden.stride(0),
            weight_stride=weight.stride(0),
            ref_hidden_stride=ref_hidden.stride(0),
            ref_weight_stride=ref_weight.stride(0),
            norms_stride=norms.stride(0),
            cotangents_stride=cotangents.stride(0),
            dz_stride=out.stride(0),
            partial_stride=partial.stride(0),
            rows=count,
            width=width,
            ref_width=ref_width,
            columns_end=columns,
            first_class=block.first_class,
            D=hidden.shape[1],
            REF_D=ref_hidden.shape[1],
            BIAS=bias is not None,
            REF_BIAS=two and ref_bias is not None,
            DZ_PAD=is_padded(out),
            KL_SUM=kl_sum is not None,
            LOGP=slot("logp", outputs),
            KL=slot("kl", outputs),
            **scaling_arguments(scaling),
            HALVES=how.halves,
            **options(how, hidden),
        )
    if kl_sum is not None:
        torch.sum(partial, dim=0, out=kl_sum)


@triton.jit(do_not_specialize=VARYING)
def gradient_kernel(
    hidden,  # (C, D)
    weight,  # (V, D)
    bias,  # (V,)
    ref_hidden,  # (C, D')
    ref_weight,  # (V', D')
    ref_bias,  # (V',)
    targets,  # (C,)
    norms,  # (4, C)
    cotangents,  # (K, C)
    dz,  # (C, V) written
    partial,  # (blocks, C) written where KL_SUM
    hidden_stride,
    weight_stride,
    ref_hidden_stride,
    ref_weight_stride,
    norms_stride,
    cotangents_stride,
    dz_stride,
    partial_stride,
    rows,
    width,
    ref_width,
    columns_end,  # the larger of both where KL_SUM, else `width`
    first_class,
    scale,
    softcap,
    inv_temp,
    D: tl.constexpr,
    REF_D: tl.constexpr,
    BIAS: tl.constexpr,
    REF_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    DZ_PAD: tl.constexpr,  # rows of dz are followed by padding up to a multiple of 16
    KL_SUM: tl.constexpr,
    LOGP: tl.constexpr,  # an output's row in `cotangents`, −1 where it is not there
    KL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    HALVES: tl.constexpr,  # work on half a tile at a time, which takes fewer registers
):
    block_c, block_v = place_of(rows, columns_end, BLOCK_C, BLOCK_V, GROUP)
    z = products(
        *(hidden, weight, hidden_stride, weight_stride, block_c, block_v, rows, width),
        *(D, UPCAST, BLOCK_C, BLOCK_V, BLOCK_D),
    )
    if KL >= 0:
        zr = products(
            *(ref_hidden, ref_weight, ref_hidden_stride, ref_weight_stride),
            *(block_c, block_v, rows, ref_width, REF_D, UPCAST, BLOCK_C, BLOCK_V, BLOCK_D),
        )
    else:
        zr = z
    first = block_v * BLOCK_V
    heads = bias, ref_bias, width, ref_width
    numbers = targets, norms, norms_stride, cotangents, cotangents_stride
    store = dz, dz_stride
    place = block_c, rows, first_class
    scaling = scale, softcap, inv_temp
    if HALVES:
        left, right = halves(z, BLOCK_C, BLOCK_V)
        ref_left, ref_right = halves(zr, BLOCK_C, BLOCK_V)
        kl_sum = _gradient_columns(
            *(left, ref_left, first, heads, numbers, store, place, scaling),
            *(BIAS, REF_BIAS, SCALE, CAP, DZ_PAD, KL_SUM, LOGP, KL, BLOCK_C, BLOCK_V // 2),
        )
        kl_sum += _gradient_columns(
            *(right, ref_right, first + BLOCK_V // 2, heads, numbers, store, place, scaling),
            *(BIAS, REF_BIAS, SCALE, CAP, DZ_PAD, KL_SUM, LOGP, KL, BLOCK_C, BLOCK_V // 2),
        )
    else:
        kl_sum = _gradient_columns(
            *(z, zr, first, heads, numbers, store, place, scaling),
            *(BIAS, REF_BIAS, SCALE, CAP, DZ_PAD, KL_SUM, LOGP, KL, BLOCK_C, BLOCK_V),
        )
    if KL_SUM:
        i = block_c.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
        here = partial + block_v.to(tl.int64) * partial_stride + i
        tl.store(here, kl_sum, mask=i < rows)


@triton.jit
def _gradient_columns(
    z,  # (BLOCK_C, COLUMNS) products of the policy
    zr,  # of the reference; z where there is no KL
    first_column,
    heads,  # bias, ref_bias, width, ref_width
    numbers,  # targets, norms, norms_stride, cotangents, cotangents_stride
    store,  # dz, dz_stride
    place,  # block_c, rows, first_class
    scaling,  # scale, softcap, inv_temp
    BIAS: tl.constexpr,
    REF_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    DZ_PAD: tl.constexpr,
    KL_SUM: tl.constexpr,
    LOGP: tl.constexpr,
    KL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient by some columns of a tile, written; their KL sums, 0 where not KL_SUM."""
    bias, ref_bias, width, ref_width = heads
    targets, norms, norms_stride, cotangents, cotangents_stride = numbers
    dz, dz_stride = store
    block_c, rows, first_class = place
    scale, softcap, inv_temp = scaling
    columns = first_column + tl.arange(0, COLUMNS)
    i = block_c.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = i < rows
    # Nothing beyond the last class is stored: −inf there is for the KL alone.
    z = transformed(
        *(z, bias, first_column, width, scale, softcap, inv_temp),
        *(BIAS, SCALE, CAP, COLUMNS, KL_SUM),
    )
    top = _row(norms, norms_stride, 0, i, real)
    log_sum = _row(norms, norms_stride, 1, i, real)
    p = probability(z, top, log_sum)
    kl_sum = tl.zeros((BLOCK_C,), tl.float32)
    grad = tl.zeros((BLOCK_C, COLUMNS), tl.float32)
    if KL >= 0:
        zr = transformed(
            *(zr, ref_bias, first_column, ref_width, scale, softcap, inv_temp),
            *(REF_BIAS, SCALE, CAP, COLUMNS, True),
        )
        ref_top = _row(norms, norms_stride, 2, i, real)
        ref_log_sum = _row(norms, norms_stride, 3, i, real)
        q = probability(zr, ref_top, ref_log_sum)
        # z' − z is exact next to the reference; two rounded log-probabilities are not.
        d = (zr - z) - ((ref_top - top) + (ref_log_sum - log_sum))
        change, terms = _change_and_kl(p, q, d)
        if KL_SUM:
            kl_sum = tl.sum(terms, axis=1)
        # A masked class has no gradient, whatever probability the reference gives it.
        if BIAS:
            change = tl.where(z == float("-inf"), 0.0, change)
        grad = -_row(cotangents, cotangents_stride, KL, i, real) * change
    if LOGP >= 0:
        a = _row(cotangents, cotangents_stride, LOGP, i, real)
        column = columns_of(tl.load(targets + i, mask=real, other=-1), first_class, width)
        # A masked target, hopeless as it is, has its gradient, except under a softcap.
        grad += tl.where(columns[None, :] == column[:, None], a, 0.0) - a * p
    if CAP:
        t = z * (1.0 / (inv_temp * softcap))
        grad = tl.where(z == float("-inf"), 0.0, grad * (scale * inv_temp * (1.0 - t * t)))
    elif SCALE:
        grad *= scale * inv_temp
    end = (width + 15) // 16 * 16 if DZ_PAD else width
    base = dz + block_c.to(tl.int64) * BLOCK_C * dz_stride
    at = base + tl.arange(0, BLOCK_C)[:, None] * dz_stride + columns[None, :]
    mask = real[:, None] & (columns < end)[None, :]
    tl.store(at, grad.to(dz.dtype.element_ty), mask=mask)
    return kl_sum


@triton.jit
def _change_and_kl(p, q, d):
    """`difference` and `kl_terms` of `..functions`, sharing the series and the comparison."""
    e = excess(d)
    near = tl.abs(d) < 0.5
    rise = d + e
    change = tl.where(near, p * rise, q - p)
    # Where q is 0, d may be −inf, or NaN where p is 0 too: any finite number makes q·d = 0.
    # (`tl.maximum` of a NaN is one number compiled and another interpreted.)
    far = q * tl.where(d > -1e4, d, -1e4) - change
    return change, tl.where(near, p * (d * rise - e), far)


@triton.jit
def _row(numbers, stride, k, i, real):
    """Row k of (K, C) numbers as a column, for rows of a block."""
    return tl.load(numbers + k * stride + i, mask=real, other=0.0)[:, None]
