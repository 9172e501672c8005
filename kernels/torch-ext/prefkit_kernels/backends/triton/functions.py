"""What the kernels share: loading logits, and functions exact where plain formulas cancel.

The elementary functions are written out, not taken from libdevice, so that they are the same on
NVIDIA, on AMD and under the interpreter. One series, of e^d − 1 − d, serves all that cancels near
d = 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Read or written one number a row, so their alignment does not matter; and counts.
VARYING = (
    *("targets", "norms", "stats", "cotangents", "partial", "out"),
    *("norms_stride", "stats_stride", "cotangents_stride", "out_stride"),
    *("partial_plane", "partial_stride", "first_class", "rows", "blocks"),
)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def padded(width):
    """`core.buffers.padded`, in a form from which the compiler sees the factor 16."""
    return (width + 15) // 16 * 16


@triton.jit
def load_logits(
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
    readable = (columns >= 0) & (columns < padded(width)) if PAD else inside
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


@triton.jit
def exp(x):
    """e^x as the hardware's exp2; `tl.exp` adds instructions for results below 1e-38."""
    return tl.exp2(x * _LOG2_E)


@triton.jit
def probability(z, top, log_sum):
    """exp((z − top) − log_sum) in three instructions.

    log₂e comes in after the maximum was subtracted: folded into the logits themselves it would
    cost the digits of their common offset.
    """
    return tl.exp2((z - top) * _LOG2_E - log_sum * _LOG2_E)


@triton.jit
def rescale(total, own, common):
    """Σ exp(z − own) → Σ exp(z − common); 0 where there was no finite z (own = −inf)."""
    return total * tl.where(own == float("-inf"), 0.0, exp(own - common))


@triton.jit
def excess(d):
    """e^d − 1 − d for |d| < 0.5 by its series to d⁹: never negative, relative error 1e-7."""
    s = d * (1.0 / 362880.0) + 1.0 / 40320.0
    s = d * s + 1.0 / 5040.0
    s = d * s + 1.0 / 720.0
    s = d * s + 1.0 / 120.0
    s = d * s + 1.0 / 24.0
    s = d * s + 1.0 / 6.0
    s = d * s + 0.5
    return d * d * s


@triton.jit
def tanh(x):
    """(e^{2x} − 1) / (e^{2x} + 1) to a few ulp: e^{2x} − 1 by its series where it would cancel."""
    small = tl.abs(x) < 0.25
    rise = 2.0 * x + excess(2.0 * x)
    fall = exp(-2.0 * tl.abs(x))
    far = tl.where(x < 0, fall - 1.0, 1.0 - fall)
    return tl.where(small, rise, far) / tl.where(small, rise + 2.0, 1.0 + fall)


@triton.jit
def difference(p, q, d):
    """q − p of two probabilities with d = log q − log p: p·expm1(d) where q − p would cancel."""
    return tl.where(tl.abs(d) < 0.5, p * (d + excess(d)), q - p)


@triton.jit
def kl_terms(p, q, d):
    """Terms q·(d + e^{−d} − 1) of KL(q‖p), d = log q − log p; never negative.

    Near d = 0 they are p·(d·c − (c − d)) with c = e^d − 1, about p·d²/2; p where q is 0.
    """
    e = excess(d)
    near = p * (d * (d + e) - e)
    far = tl.where(q == 0, 0.0, q * d) + (p - q)
    return tl.where(tl.abs(d) < 0.5, near, far)


@triton.jit
def reverse_kl_terms(p, q, d):
    """Terms p·(e^d − 1 − d) of KL(p‖q), d = log q − log p; never negative; q where p is 0."""
    far = (q - p) - tl.where(p == 0, 0.0, p * d)
    return tl.where(tl.abs(d) < 0.5, p * excess(d), far)
