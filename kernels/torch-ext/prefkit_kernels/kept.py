"""`keep_dz`: one pass for several pairs, or few tokens, with a trainable head.

`one_pass` adds up ∂S/∂weight in the forward, in one V × D matrix of fp32, so it takes one pair; and
for few tokens that matrix is most of its work. Kept instead are the gradients of the scores by the
logits, dz (N, V) in the dtype of the gradient products. The backward knows L'(S_i) of every pair,
folds it into the hidden states, and makes the weight's gradient by one product, written once:

    ∂L/∂weight = dzᵀ (f ⊙ hidden),   f_t = L'(S_i) of the pair i of token t

4 products with a reference where two passes take 5 or 6, and no V × D accumulator. The price is
N × V numbers between forward and backward, so bytes decide (`fits`).
"""

import torch
from torch import Tensor

from .buffers import padded
from .chunking import token_budget
from .gemm import compute_dtype, gradient_dtype, weight_grad_
from .problem import scored_rows
from .scaling import scale_rows

_BIAS_BLOCK = 1 << 22  # elements of dz at a time


def dz_bytes(rows: int, classes: int, hidden: Tensor) -> int:
    """Bytes of dz for `rows` scored tokens of `classes` classes."""
    return rows * padded(classes) * gradient_dtype(hidden).itemsize


def allowed_bytes(
    hidden: Tensor,  # (T, D), in the products' dtype
    weight: Tensor,  # (V, D), in the dtype of its gradient
    classes: int,
    pairs: int,
    budget: int,
) -> int:
    """The most that dz may take where nobody asked for `keep_dz` by name.

    `budget` where it is given. Else the buffer of logits of one pass over a trained head; and,
    where the other passes hold (or, for several pairs, would have to hold) an fp32 accumulator
    of the weight's size beside its gradient, the bytes of that.
    """
    if budget:
        return budget
    dtype = compute_dtype(hidden.dtype)
    buffer = token_budget(hidden.device, padded(classes) * dtype.itemsize, trained=True)
    accumulates = pairs > 1 or weight.dtype != dtype
    return max(buffer, classes * weight.shape[1] * dtype.itemsize if accumulates else 0)


def fits(
    hidden: Tensor,
    weight: Tensor,
    rows: int,
    pairs: int,
    budget: int = 0,
    classes: int | None = None,
) -> bool:
    """Whether dz of `rows` scored tokens takes no more than `allowed_bytes`.

    Args:
        classes: rows of the widest slice of a vocabulary that is split over processes, from which
            all of them decide alike; None = V.
    """
    classes = classes or weight.shape[0]
    return dz_bytes(rows, classes, hidden) <= allowed_bytes(hidden, weight, classes, pairs, budget)


def gradients(
    dz: Tensor,  # (N, padded V) gradients of the scores by the raw logits, times `scale`
    scale: Tensor,  # () a power of two
    hidden: Tensor,  # (T, D)
    targets: Tensor,  # (T,)
    factors: Tensor,  # (T,) fp32 | fp64: L'(S) of each row's pair; anything in skipped rows
    ignore_index: int,
    classes: int,
    weight_dtype: torch.dtype | None,
    need_bias: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """d_weight (V, D) in `weight_dtype` (None: not needed), d_bias (V,) in the factors' dtype."""
    scored = scored_rows(targets, ignore_index, len(dz))
    dz, factors = dz[:, :classes], scored.pick(factors)
    d_weight = d_bias = None
    if weight_dtype is not None:
        states = scored.pick(hidden)
        after = None
        if dz.dtype == torch.float16:
            # Factors of a loss are small: in fp16 states would underflow with them. What is common
            # to all rows is multiplied in afterwards, in fp32.
            common = torch.cat([factors, factors.new_zeros(1)]).abs().amax()
            common = common.clamp_min(torch.finfo(factors.dtype).tiny)
            after, factors = common / scale, factors / common
        folded = torch.empty_like(states, dtype=dz.dtype, memory_format=torch.contiguous_format)
        scale_rows(states, factors, folded)
        d_weight = hidden.new_empty(classes, hidden.shape[1], dtype=weight_dtype)
        weight_grad_(d_weight, dz, folded, after)
        if after is not None:
            factors = factors * common
    if need_bias:
        d_bias = factors.new_zeros(classes)
        rows = max(1, _BIAS_BLOCK // max(1, classes))
        for start in range(0, len(dz), rows):
            here = slice(start, start + rows)
            d_bias.addmv_(dz[here].to(factors.dtype).T, factors[here] / scale)
    return d_weight, d_bias
