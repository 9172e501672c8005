"""`pair_scores` as a torch.library operator (see `ops`), and its gradient."""

from typing import Any

import torch
from torch import Tensor

from .buffers import padded
from .gemm import compute_dtype, gradient_dtype
from .kept import gradients as kept_gradients
from .one_pass import pair_scores
from .problem_args import (
    NAMESPACE,
    NUM_TENSORS,
    SETTINGS,
    TENSORS,
    plain,
    problem_of,
)
from .scaling import scale_rows

_NUM_SCORED = [name.split()[-1] for name in SETTINGS.split(", ")].index("num_scored")
_NEEDS = "bool need_hidden, bool need_weight, bool need_bias"


@torch.library.custom_op(
    f"{NAMESPACE}::pair_scores",
    mutates_args=(),
    schema=(
        f"({TENSORS}, {SETTINGS}, Tensor pairs, Tensor coefficients, int num_pairs, {_NEEDS}, "
        "bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def pair_scores_op(*args: Any) -> tuple[Tensor, ...]:
    """(scores, stats, d_hidden, d_weight, d_bias, dz, scale); gradients empty where not needed.

    With `keep`, for which the settings must tell `num_scored`, dz takes the place of d_weight and
    d_bias.
    """
    problem, (pairs, coefficients, num_pairs, *needs, keep) = args[:-7], args[-7:]
    with plain(args[0]):
        found = pair_scores(
            problem_of(*problem),
            pairs,
            coefficients,
            num_pairs,
            (needs[0], needs[1], needs[2]),
            keep,
        )
    scores = found[0]
    assert scores is not None, "scores are always made"
    return tuple(scores.new_empty(0) if x is None else x for x in found)


@pair_scores_op.register_fake
def _pair_scores_fake(*args: Any) -> tuple[Tensor, ...]:
    hidden, weight, outputs = args[0], args[1], args[NUM_TENSORS]
    num_pairs, *needs, keep = args[-5:]
    num_scored = args[NUM_TENSORS + _NUM_SCORED]
    like = hidden.new_empty(0, dtype=compute_dtype(hidden.dtype))
    return (
        like.new_empty(num_pairs),
        like.new_empty(len(outputs), hidden.shape[0]),
        like.new_empty(hidden.shape if needs[0] else (0,)),
        like.new_empty(weight.shape if needs[1] and not keep else (0,)),
        like.new_empty(weight.shape[0] if needs[2] and not keep else 0),
        _empty_dz(hidden, num_scored, weight.shape[0]) if keep else like.new_empty(0),
        like.new_empty(()),
    )


def _empty_dz(hidden: Tensor, num_scored: int, classes: int) -> Tensor:
    return hidden.new_empty(num_scored, padded(classes), dtype=gradient_dtype(hidden))


@torch.library.custom_op(f"{NAMESPACE}::kept_gradients", mutates_args=())
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
    """(d_weight, d_bias), empty where not needed; see `kept.gradients`."""
    kind = weight_dtype if need_weight else None
    with plain(hidden):
        found = kept_gradients(
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


class ScoresWithGradient(torch.autograd.Function):
    """Ties scores to the operands whose gradients `pair_scores_op` has made along with them.

    No part of the operator: the backward writes over those gradients (unless dz is kept), which an
    operator's outputs do not allow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (T, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        scores: Tensor,  # (P,)
        pair_of_row: Tensor,  # (T,) int64, P where the row does not count
        operand: Tensor,  # (T, D) hidden as the operator read it
        targets: Tensor,  # (T,)
        ignore_index: int,
        *made: Tensor,  # d_hidden, d_weight, d_bias, dz, scale of the operator
    ) -> Tensor:
        ctx.keeps = made[3].dim() == 2
        extra = (operand, targets) if ctx.keeps else ()
        ctx.save_for_backward(*made, pair_of_row, *extra)
        ctx.used, ctx.ignore_index = False, ignore_index
        ctx.dtypes = [x.dtype if x is not None else hidden.dtype for x in (hidden, weight, bias)]
        ctx.classes = weight.shape[0]
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "pair_scores has no second derivative (backward with create_graph=True)"
            )
        if not torch.compiler.is_compiling() and not ctx.keeps:
            if ctx.used:
                raise RuntimeError(
                    "a second backward through pair_scores: its gradients were made in the forward "
                    "and have been scaled in place; use passes='two_pass' (token_stats)"
                )
            ctx.used = True
        d_hidden, d_weight, d_bias, dz, scale, pair_of_row, *rows = ctx.saved_tensors
        by_row = torch.cat([grad_scores, grad_scores.new_zeros(1)])[pair_of_row]
        needs, dtypes = ctx.needs_input_grad[:3], ctx.dtypes
        # With dz kept a second backward is possible: nothing is written over.
        own = d_hidden.clone() if ctx.keeps and d_hidden.dtype == dtypes[0] else d_hidden
        grads = [_scaled(own, by_row, dtypes[0]) if needs[0] else None]
        if ctx.keeps:
            settings = (ctx.ignore_index, ctx.classes, dtypes[1], needs[1], needs[2])
            found = kept_gradients_op(dz, scale, *rows, by_row, *settings)
            grads += [found[0] if needs[1] else None, found[1].to(dtypes[2]) if needs[2] else None]
        else:  # there is one pair then, or neither of the two is needed
            of_all = grad_scores[:1].expand(max(len(d_weight), len(d_bias)))
            grads += [
                _scaled(direction, of_all, dtype) if need else None
                for direction, dtype, need in zip(
                    (d_weight, d_bias), dtypes[1:], needs[1:], strict=True
                )
            ]
        return *grads, *(None,) * 10


def _scaled(direction: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """direction ⊙ factors in `dtype`, in the direction's own memory where the dtypes agree.

    A second backward through the same graph would find it scaled already, and is refused. While a
    compiler traces, the product is an ordinary one, in new memory.
    """
    if torch.compiler.is_compiling() or type(direction) is not Tensor:
        shape = (-1,) + (1,) * (direction.dim() - 1)
        return (direction.to(factors.dtype) * factors.view(shape)).to(dtype)
    same = direction.dtype == dtype
    out = direction if same else direction.new_empty(direction.shape, dtype=dtype)
    return scale_rows(direction, factors, out).detach()
