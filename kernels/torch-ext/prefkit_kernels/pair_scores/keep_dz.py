"""`keep_dz`: one pass for several pairs, or few tokens, with a trainable head.

`one_pass` adds up ∂S/∂weight in the forward, in one V × D matrix of fp32, so it takes one pair; and
for few tokens that matrix is most of its work. Kept instead are the gradients of the scores by the
logits, dz (N, V) in the dtype of the gradient products. The backward knows L'(S_i) of every pair,
folds it into the hidden states, and makes the weight's gradient by one product, written once:

    ∂L/∂weight = dzᵀ (f ⊙ hidden),   f_t = L'(S_i) of the pair i of token t

4 products with a reference where two passes take 5 or 6, and no V × D accumulator. The price is
N × V numbers between forward and backward, so bytes decide (`fits`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..core.buffers import padded, token_budget
from ..core.gemm import compute_dtype, gradient_dtype, weight_grad_
from ..core.problem import plain, scored_positions
from ..vocab_parallel import VocabShard

_BIAS_BLOCK = 1 << 22  # elements of dz at a time
_SCALED_BLOCK = 4 << 20  # elements scaled at a time


def keeps_dz(
    operands: tuple[Tensor, Tensor],  # hidden (T, D) in the products' dtype, targets (T,)
    weight: Tensor,  # (V, D) in the dtype of its gradient
    num_pairs: int,
    num_scored: int | None = None,
    memory_budget: int | None = None,
    vocab_shard: VocabShard | None = None,
) -> bool:
    """Whether `passes="auto"` keeps dz for a trainable head: by bytes, without synchronisation.

    Where the scored tokens are not counted beforehand, all are taken for scored.
    """
    hidden, targets = operands
    if num_scored is None and torch.compiler.is_compiling():  # counting would break the graph
        return False
    count = len(targets) if num_scored is None else num_scored
    widest = vocab_shard.widest if vocab_shard else None
    return fits(hidden, weight, count, num_pairs, memory_budget or 0, widest)


def fits(
    hidden: Tensor,
    weight: Tensor,
    tokens: int,
    pairs: int,
    budget: int = 0,
    classes: int | None = None,
) -> bool:
    """Whether dz of `tokens` scored tokens takes no more than `allowed_bytes`.

    Args:
        classes: rows of the widest slice of a vocabulary that is split over processes, from which
            all of them decide alike; None = V.
    """
    classes = classes or weight.shape[0]
    return dz_bytes(tokens, classes, hidden) <= allowed_bytes(
        hidden, weight, classes, pairs, budget
    )


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


def dz_bytes(tokens: int, classes: int, hidden: Tensor) -> int:
    """Bytes of dz for `tokens` scored tokens of `classes` classes."""
    return tokens * padded(classes) * gradient_dtype(hidden).itemsize


@torch.library.custom_op(
    add_op_namespace_prefix("kept_gradients"),
    mutates_args=(),
    schema=(
        "(Tensor dz, Tensor scale, Tensor hidden, Tensor targets, Tensor factors, "
        "int ignore_index, int classes, ScalarType weight_dtype, bool need_weight, bool need_bias)"
        " -> (Tensor, Tensor)"
    ),
)
def kept_gradients_op(
    dz: Tensor,
    scale: Tensor,
    hidden: Tensor,
    targets: Tensor,
    factors: Tensor,
    ignore_index: int,
    classes: int,
    weight_dtype: torch.dtype,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    """(d_weight, d_bias), empty where not needed; see `gradients`."""
    kind = weight_dtype if need_weight else None
    with plain(hidden):
        found = gradients(
            dz, scale, hidden, targets, factors, ignore_index, classes, kind, need_bias
        )
    d_weight, d_bias = (factors.new_empty(0) if x is None else x for x in found)
    return d_weight, d_bias


@kept_gradients_op.register_fake
def _kept_gradients_fake(*args: Any) -> tuple[Tensor, Tensor]:
    _, _, hidden, _, factors, _, classes, weight_dtype, need_weight, need_bias = args
    d_weight = factors.new_empty(0)
    if need_weight:
        d_weight = hidden.new_empty(classes, hidden.shape[1], dtype=weight_dtype)
    return d_weight, factors.new_empty(classes if need_bias else 0)


def gradients(
    dz: Tensor,  # (N, padded V) gradients of the scores by the raw logits, times `scale`
    scale: Tensor,  # () a power of two
    hidden: Tensor,  # (T, D)
    targets: Tensor,  # (T,)
    factors: Tensor,  # (T,) fp32 | fp64: L'(S) of each token's pair; anything at skipped ones
    ignore_index: int,
    classes: int,
    weight_dtype: torch.dtype | None,
    need_bias: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """d_weight (V, D) in `weight_dtype` (None: not needed), d_bias (V,) in the factors' dtype."""
    scored = scored_positions(targets, ignore_index, len(dz))
    dz, factors = dz[:, :classes], scored.pick(factors)
    d_weight = d_bias = None
    if weight_dtype is not None:
        states = scored.pick(hidden)
        after = None
        if dz.dtype == torch.float16:
            # Factors of a loss are small: in fp16 states would underflow with them. What is common
            # to all tokens is multiplied in afterwards, in fp32.
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
        size = max(1, _BIAS_BLOCK // max(1, classes))
        for start in range(0, len(dz), size):
            here = slice(start, start + size)
            d_bias.addmv_(dz[here].to(factors.dtype).T, factors[here] / scale)
    return d_weight, d_bias


def scale_rows(
    direction: Tensor,  # (R, …)
    factors: Tensor,  # (R,) fp32 | fp64
    out: Tensor,  # (R, …), overwritten; may be `direction` itself
) -> Tensor:
    """direction ⊙ factors, each product in the factors' precision and rounded once.

    By blocks of rows, so that no second tensor of that precision is held.
    """
    factors = factors.view(-1, *(1,) * (direction.dim() - 1))
    rows = max(1, _SCALED_BLOCK * len(direction) // max(1, direction.numel()))
    for start in range(0, len(direction), rows):
        here = slice(start, start + rows)
        if direction.dtype == factors.dtype == out.dtype:
            torch.mul(direction[here], factors[here], out=out[here])
        else:
            out[here] = direction[here] * factors[here]
    return out
