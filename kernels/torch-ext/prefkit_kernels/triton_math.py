"""Elementary functions that the Triton kernels need exact where plain formulas cancel.

Written out, not taken from libdevice, so that they are the same on NVIDIA, on AMD and under the
interpreter. `tl.exp(x)` needs no help: it compiles to one multiplication by log₂e and the
hardware's exp2, and it is only ever given differences from a maximum. Folding log₂e into the
logits before that difference would save the multiplication and cost the digits of an offset.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh without libdevice, to a few ulp: (e^{2x} − 1) / (e^{2x} + 1), e^{2x} − 1 by series
    where it would cancel."""
    t = tl.exp(-2.0 * tl.abs(x))
    far = tl.where(x < 0, t - 1.0, 1.0 - t)
    e = expm1_small(2.0 * x)
    small = tl.abs(x) < 0.25
    return tl.where(small, e, far) / tl.where(small, e + 2.0, 1.0 + t)


@triton.jit
def rescale(total, own, common):
    """Σ exp(z − own) → Σ exp(z − common); 0 where there was no finite z (own = −inf)."""
    return total * tl.where(own == float("-inf"), 0.0, tl.exp(own - common))


@triton.jit
def expm1_small(d):
    """e^d − 1 for |d| < 0.5 by its series, relative error below 1e-8."""
    s = 1.0 + d * (1.0 / 8.0) * (1.0 + d * (1.0 / 9.0) * (1.0 + d * (1.0 / 10.0)))
    s = 1.0 + d * (1.0 / 6.0) * (1.0 + d * (1.0 / 7.0) * s)
    s = 1.0 + d * (1.0 / 4.0) * (1.0 + d * (1.0 / 5.0) * s)
    return d * (1.0 + d * (1.0 / 2.0) * (1.0 + d * (1.0 / 3.0) * s))


@triton.jit
def excess_small(d):
    """e^d − 1 − d for |d| < 0.5 by its series: no cancellation, never negative."""
    s = 1.0 + d * (1.0 / 8.0) * (1.0 + d * (1.0 / 9.0) * (1.0 + d * (1.0 / 10.0)))
    s = 1.0 + d * (1.0 / 6.0) * (1.0 + d * (1.0 / 7.0) * s)
    s = 1.0 + d * (1.0 / 4.0) * (1.0 + d * (1.0 / 5.0) * s)
    return d * d * 0.5 * (1.0 + d * (1.0 / 3.0) * s)


@triton.jit
def kl_terms(q, p, d):
    """Per-class terms q·(d + e^{−d} − 1) of KL(q‖p), d = log q − log p; they are never negative."""
    near = q * excess_small(-d)
    far = q * d + (p - q)
    return tl.where(q == 0, p, tl.where(tl.abs(d) < 0.5, near, far))
