"""Row operations as Triton kernels: raw logits → per-token statistics, and their gradient.

Same two functions, same arguments and same meaning as `rows_torch`. One program reads one row; a
row is never held whole, so any vocabulary fits. Rows lie on grid axis 0 (the other axes end at
65535) and every row offset is int64 (rows × V passes 2³¹ at 14 k rows of a 152 k vocabulary).
Without a GPU the kernels run under `TRITON_INTERPRET=1` (set before the import).
"""

import os

import triton
import triton.language as tl
from torch import Tensor

from .logits import OUTPUTS
from .rows_torch import Rows
from .triton_math import expm1_small, kl_terms, tanh

_FINITE_MIN = tl.constexpr(-3.0e38)  # starts a running maximum without inf − inf


def interpreted() -> bool:
    """Whether Triton runs its kernels on CPU tensors in this process."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def statistics(rows: Rows, outputs: tuple[str, ...], stats: Tensor, norms: Tensor) -> None:
    """See `rows_torch.statistics`."""
    raw, ref = rows.raw, rows.ref
    block, warps = _launch(max(raw.shape[1], ref.shape[1] if ref is not None else 0))
    _statistics_kernel[(raw.shape[0],)](
        *_pointers(rows),
        stats,
        norms,
        raw.stride(0),
        ref.stride(0) if ref is not None else 0,
        stats.stride(0),
        norms.stride(0),
        raw.shape[1],
        ref.shape[1] if ref is not None else 0,
        rows.transform.scale,
        rows.transform.softcap,
        1.0 / rows.transform.temperature,
        *_flags(rows),
        *_slots(outputs),
        BLOCK=block,
        num_warps=warps,
    )


def gradient(
    rows: Rows,
    outputs: tuple[str, ...],
    stats: Tensor,
    norms: Tensor,
    cotangents: Tensor,
    out: Tensor,
) -> None:
    """See `rows_torch.gradient`. `out` may have a lower precision than the logits; it may be
    `rows.raw` itself, since each element is written by the program that has read it."""
    raw, ref = rows.raw, rows.ref
    block, warps = _launch(raw.shape[1])
    _gradient_kernel[(raw.shape[0], triton.cdiv(raw.shape[1], block))](
        *_pointers(rows),
        stats,
        norms,
        cotangents,
        out,
        raw.stride(0),
        ref.stride(0) if ref is not None else 0,
        stats.stride(0),
        norms.stride(0),
        cotangents.stride(0),
        out.stride(0),
        raw.shape[1],
        ref.shape[1] if ref is not None else 0,
        rows.first_class,
        rows.transform.scale,
        rows.transform.softcap,
        1.0 / rows.transform.temperature,
        *_flags(rows),
        *_slots(outputs),
        BLOCK=block,
        num_warps=warps,
    )


def _launch(width: int) -> tuple[int, int]:
    """Block size and warps for rows of `width` classes."""
    block = min(4096, triton.next_power_of_2(width))
    return block, (8 if block >= 4096 else 4)


def _pointers(rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    for tensor in (rows.raw, rows.ref, rows.bias, rows.ref_bias, rows.targets):
        # An empty slice of a shorter vocabulary is never read, whatever its strides.
        assert tensor is None or tensor.stride(-1) == 1 or tensor.numel() < 2, "needs unit stride"
    # An absent tensor is never read: its flag is off. Any tensor stands in for the pointer.
    ref = rows.raw if rows.ref is None else rows.ref
    bias = rows.raw if rows.bias is None else rows.bias
    ref_bias = rows.raw if rows.ref_bias is None else rows.ref_bias
    return rows.raw, ref, bias, ref_bias, rows.targets


def _flags(rows: Rows) -> tuple[bool, bool, bool, bool]:
    return (
        rows.ref is not None,
        rows.bias is not None,
        rows.ref_bias is not None,
        rows.transform.softcap != 0.0,
    )


def _slots(outputs: tuple[str, ...]) -> tuple[int, ...]:
    """For each known output its row in `stats`, −1 where it was not asked for."""
    return tuple(outputs.index(name) if name in outputs else -1 for name in OUTPUTS)


@triton.jit
def _load_logits(
    row, bias, columns, width, scale, softcap, inv_temp, HAS_BIAS: tl.constexpr, CAP: tl.constexpr
):
    """Logits of some columns of a row; −inf beyond its width."""
    inside = columns < width
    z = tl.load(row + columns, mask=inside, other=float("-inf")).to(tl.float32)
    dead = z == float("-inf")
    if HAS_BIAS:
        z += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
        dead = z == float("-inf")
    z *= scale
    if CAP:
        z = softcap * tanh(z / softcap)
    return tl.where(dead, float("-inf"), z * inv_temp)


@triton.jit
def _norms_of_row(
    row,
    bias,
    width,
    scale,
    softcap,
    inv_temp,
    HAS_BIAS: tl.constexpr,
    CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Maximum and log Σ exp(z − max) of a row in one read, each lane with its own running pair."""
    top = tl.full((BLOCK,), _FINITE_MIN, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = _load_logits(row, bias, columns, width, scale, softcap, inv_temp, HAS_BIAS, CAP)
        higher = tl.maximum(top, z)
        total = total * tl.exp(top - higher) + tl.exp(z - higher)
        top = higher
    row_top = tl.max(top, axis=0)
    row_total = tl.sum(total * tl.exp(top - row_top), axis=0)
    return row_top, tl.log(row_total)


@triton.jit
def _target_logp(
    row,
    bias,
    target,
    width,
    top,
    log_sum,
    scale,
    softcap,
    inv_temp,
    HAS_BIAS: tl.constexpr,
    CAP: tl.constexpr,
):
    """log p of the target: −inf for a class beyond the vocabulary, NaN for a negative target."""
    column = tl.maximum(target, 0)
    z = _load_logits(row, bias, column, width, scale, softcap, inv_temp, HAS_BIAS, CAP)
    return tl.where(target < 0, float("nan"), (z - top) - log_sum)


@triton.jit
def _statistics_kernel(
    raw,  # (C, V)
    ref,  # (C, V')
    bias,  # (V,)
    ref_bias,  # (V',)
    targets,  # (C,)
    stats,  # (K, C) out
    norms,  # (4, C) out
    raw_stride,
    ref_stride,
    stats_stride,
    norms_stride,
    width,
    ref_width,
    scale,
    softcap,
    inv_temp,
    HAS_REF: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_REF_BIAS: tl.constexpr,
    CAP: tl.constexpr,
    LOGP: tl.constexpr,
    REF_LOGP: tl.constexpr,
    KL: tl.constexpr,
    REVERSE_KL: tl.constexpr,
    ENTROPY: tl.constexpr,
    LOG_SUM_SQ: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + i)
    row = raw + i * raw_stride
    top, log_sum = _norms_of_row(row, bias, width, scale, softcap, inv_temp, HAS_BIAS, CAP, BLOCK)
    tl.store(norms + i, top)
    tl.store(norms + norms_stride + i, log_sum)
    if LOGP >= 0:
        logp = _target_logp(
            row, bias, target, width, top, log_sum, scale, softcap, inv_temp, HAS_BIAS, CAP
        )
        tl.store(stats + LOGP * stats_stride + i, logp)

    ref_row = ref + i * ref_stride
    ref_top = 0.0
    ref_log_sum = 0.0
    if HAS_REF:
        ref_top, ref_log_sum = _norms_of_row(
            ref_row, ref_bias, ref_width, scale, softcap, inv_temp, HAS_REF_BIAS, CAP, BLOCK
        )
        tl.store(norms + 2 * norms_stride + i, ref_top)
        tl.store(norms + 3 * norms_stride + i, ref_log_sum)
        if REF_LOGP >= 0:
            ref_logp = _target_logp(
                ref_row,
                ref_bias,
                target,
                ref_width,
                ref_top,
                ref_log_sum,
                scale,
                softcap,
                inv_temp,
                HAS_REF_BIAS,
                CAP,
            )
            tl.store(stats + REF_LOGP * stats_stride + i, ref_logp)

    # A second read, now that the normalisers are known: the sums over classes.
    if KL >= 0 or REVERSE_KL >= 0 or ENTROPY >= 0 or LOG_SUM_SQ >= 0:
        kl = tl.zeros((BLOCK,), tl.float32)
        reverse_kl = tl.zeros((BLOCK,), tl.float32)
        entropy = tl.zeros((BLOCK,), tl.float32)
        squares = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, tl.maximum(width, ref_width), BLOCK):
            columns = start + tl.arange(0, BLOCK)
            z = _load_logits(row, bias, columns, width, scale, softcap, inv_temp, HAS_BIAS, CAP)
            lp = (z - top) - log_sum
            p = tl.exp(lp)
            if ENTROPY >= 0:
                entropy -= tl.where(lp == float("-inf"), 0.0, p * lp)
            if LOG_SUM_SQ >= 0:
                squares += p * p
            if KL >= 0 or REVERSE_KL >= 0:
                zr = _load_logits(
                    ref_row,
                    ref_bias,
                    columns,
                    ref_width,
                    scale,
                    softcap,
                    inv_temp,
                    HAS_REF_BIAS,
                    CAP,
                )
                q = tl.exp((zr - ref_top) - ref_log_sum)
                # z' − z is exact next to the reference; two rounded log-probabilities are not.
                d = (zr - z) - ((ref_top - top) + (ref_log_sum - log_sum))
                if KL >= 0:
                    kl += kl_terms(q, p, d)
                if REVERSE_KL >= 0:
                    reverse_kl += kl_terms(p, q, -d)
        if KL >= 0:
            tl.store(stats + KL * stats_stride + i, tl.sum(kl, axis=0))
        if REVERSE_KL >= 0:
            tl.store(stats + REVERSE_KL * stats_stride + i, tl.sum(reverse_kl, axis=0))
        if ENTROPY >= 0:
            tl.store(stats + ENTROPY * stats_stride + i, tl.sum(entropy, axis=0))
        if LOG_SUM_SQ >= 0:
            tl.store(stats + LOG_SUM_SQ * stats_stride + i, tl.log(tl.sum(squares, axis=0)))


@triton.jit
def _gradient_kernel(
    raw,  # (C, S)
    ref,  # (C, S')
    bias,
    ref_bias,
    targets,  # (C,)
    stats,  # (K, C)
    norms,  # (4, C)
    cotangents,  # (K, C)
    out,  # (C, S)
    raw_stride,
    ref_stride,
    stats_stride,
    norms_stride,
    cotangents_stride,
    out_stride,
    width,
    ref_width,
    first_class,
    scale,
    softcap,
    inv_temp,
    HAS_REF: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_REF_BIAS: tl.constexpr,
    CAP: tl.constexpr,
    LOGP: tl.constexpr,
    REF_LOGP: tl.constexpr,
    KL: tl.constexpr,
    REVERSE_KL: tl.constexpr,
    ENTROPY: tl.constexpr,
    LOG_SUM_SQ: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = raw + i * raw_stride
    z = _load_logits(row, bias, columns, width, scale, softcap, inv_temp, HAS_BIAS, CAP)
    top = tl.load(norms + i)
    log_sum = tl.load(norms + norms_stride + i)
    lp = (z - top) - log_sum
    p = tl.exp(lp)
    dz = tl.zeros((BLOCK,), tl.float32)
    if LOGP >= 0:
        a = tl.load(cotangents + LOGP * cotangents_stride + i)
        hit = columns + first_class == tl.load(targets + i)
        dz += tl.where(hit, a, 0.0) - a * p
    if ENTROPY >= 0:
        e = tl.load(cotangents + ENTROPY * cotangents_stride + i)
        h = tl.load(stats + ENTROPY * stats_stride + i)
        dz -= tl.where(p == 0, 0.0, e * p * (lp + h))
    if LOG_SUM_SQ >= 0:
        f = tl.load(cotangents + LOG_SUM_SQ * cotangents_stride + i)
        log_squares = tl.load(stats + LOG_SUM_SQ * stats_stride + i)
        dz += 2.0 * f * p * (tl.exp(lp - log_squares) - 1.0)
    if KL >= 0 or REVERSE_KL >= 0:
        ref_row = ref + i * ref_stride
        zr = _load_logits(
            ref_row, ref_bias, columns, ref_width, scale, softcap, inv_temp, HAS_REF_BIAS, CAP
        )
        ref_top = tl.load(norms + 2 * norms_stride + i)
        ref_log_sum = tl.load(norms + 3 * norms_stride + i)
        lr = (zr - ref_top) - ref_log_sum
        d = (zr - z) - ((ref_top - top) + (ref_log_sum - log_sum))
        if KL >= 0:  # p − p' = −p·expm1(d): keeps its digits where the two are close
            b = tl.load(cotangents + KL * cotangents_stride + i)
            difference = tl.where(tl.abs(d) < 0.5, -p * expm1_small(d), p - tl.exp(lr))
            dz += b * difference
        if REVERSE_KL >= 0:
            c = tl.load(cotangents + REVERSE_KL * cotangents_stride + i)
            reverse_kl = tl.load(stats + REVERSE_KL * stats_stride + i)
            dz -= tl.where(p == 0, 0.0, c * p * (d + reverse_kl))
    slope = tl.full((BLOCK,), 1.0, tl.float32) * (scale * inv_temp)
    if CAP:
        tanh = z / (inv_temp * softcap)
        slope *= 1.0 - tanh * tanh
    dz = tl.where(z == float("-inf"), 0.0, dz * slope)
    tl.store(out + i * out_stride + columns, dz.to(out.dtype.element_ty), mask=columns < width)
