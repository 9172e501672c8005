"""`pair_scores` as a torch.library operator (see `ops`), and its gradient."""

from typing import Any

import torch
from torch import Tensor

from .gemm import compute_dtype
from .one_pass import pair_scores, scale_rows
from .problem_args import NAMESPACE, NUM_TENSORS, SETTINGS, TENSORS, plain, problem_of

_NEEDS = "bool need_hidden, bool need_weight, bool need_bias"


@torch.library.custom_op(
    f"{NAMESPACE}::pair_scores",
    mutates_args=(),
    schema=(
        f"({TENSORS}, {SETTINGS}, Tensor pairs, Tensor coefficients, int num_pairs, {_NEEDS})"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def pair_scores_op(*args: Any) -> tuple[Tensor, ...]:
    """(scores, stats, d_hidden, d_weight, d_bias), the last three empty where not needed."""
    problem, (pairs, coefficients, num_pairs, *needs) = args[:-6], args[-6:]
    with plain(args[0]):
        found = pair_scores(
            problem_of(*problem), pairs, coefficients, num_pairs, (needs[0], needs[1], needs[2])
        )
    return tuple(found[0].new_empty(0) if x is None else x for x in found)


@pair_scores_op.register_fake
def _pair_scores_fake(*args: Any) -> tuple[Tensor, ...]:
    hidden, weight, outputs = args[0], args[1], args[NUM_TENSORS]
    num_pairs, *needs = args[-4:]
    like = hidden.new_empty(0, dtype=compute_dtype(hidden.dtype))
    return (
        like.new_empty(num_pairs),
        like.new_empty(len(outputs), hidden.shape[0]),
        like.new_empty(hidden.shape if needs[0] else (0,)),
        like.new_empty(weight.shape if needs[1] else (0,)),
        like.new_empty(weight.shape[0] if needs[2] else 0),
    )


class ScoresWithGradient(torch.autograd.Function):
    """Ties scores to the operands whose gradients `pair_scores_op` has made along with them.

    No part of the operator: the backward writes over those gradients, which an operator's outputs
    do not allow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (T, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        scores: Tensor,  # (P,)
        d_hidden: Tensor,
        d_weight: Tensor,
        d_bias: Tensor,
        pair_of_row: Tensor,  # (T,) int64, P where the row does not count
    ) -> Tensor:
        ctx.save_for_backward(d_hidden, d_weight, d_bias, pair_of_row)
        ctx.used = False
        ctx.dtypes = [x.dtype if x is not None else hidden.dtype for x in (hidden, weight, bias)]
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "pair_scores has no second derivative (backward with create_graph=True)"
            )
        if not torch.compiler.is_compiling():
            if ctx.used:
                raise RuntimeError(
                    "a second backward through pair_scores: its gradients were made in the forward "
                    "and have been scaled in place; use schedule='two_pass' (token_stats)"
                )
            ctx.used = True
        d_hidden, d_weight, d_bias, pair_of_row = ctx.saved_tensors
        by_row = torch.cat([grad_scores, grad_scores.new_zeros(1)])[pair_of_row]
        of_all = grad_scores[:1].expand(max(len(d_weight), len(d_bias)))  # there is one pair then
        grads = [
            _scaled(direction, factors, dtype) if need else None
            for direction, factors, dtype, need in zip(
                (d_hidden, d_weight, d_bias),
                (by_row, of_all, of_all),
                ctx.dtypes,
                ctx.needs_input_grad[:3],
                strict=True,
            )
        ]
        return *grads, None, None, None, None, None


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
