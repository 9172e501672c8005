"""`pair_scores` as torch.library operators; see `ops`."""

from typing import Any

import torch
from torch import Tensor

from .gemm import compute_dtype
from .one_pass import pair_scores, scale_rows
from .problem_args import NAMESPACE, NUM_SETTINGS, NUM_TENSORS, SETTINGS, TENSORS, plain, problem_of

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
        hidden.new_empty(hidden.shape) if needs[0] else like.new_empty(0),
        like.new_empty(weight.shape if needs[1] else (0,)),
        like.new_empty(weight.shape[0] if needs[2] else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, d_hidden, d_weight, d_bias = output
    weight, targets, bias = inputs[1:4]
    ctx.skip_value = inputs[NUM_TENSORS + 1]
    ctx.needs = inputs[-3:]
    ctx.dtypes = (inputs[0].dtype, weight.dtype, weight.dtype if bias is None else bias.dtype)
    pairs, num_pairs = inputs[-6], inputs[-4]
    # With one pair there is nothing to look up.
    ctx.save_for_backward(d_hidden, d_weight, d_bias, targets, pairs if num_pairs > 1 else None)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_scores: Tensor | None, *_unused: Any) -> tuple[Any, ...]:
    grads: list[Any] = [None] * (NUM_TENSORS + NUM_SETTINGS + 6)
    if grad_scores is None:
        return tuple(grads)
    if torch.is_grad_enabled():
        raise RuntimeError("pair_scores has no second derivative (backward with create_graph=True)")
    d_hidden, d_weight, d_bias, targets, pairs = ctx.saved_tensors
    factors = grad_scores[0] if pairs is None else grad_scores[pairs.clamp(0, len(grad_scores) - 1)]
    per_row = torch.where(targets == ctx.skip_value, 0, factors)
    of_all = grad_scores[0].expand(len(d_weight) or len(d_bias))  # only with one pair
    found = (d_hidden, per_row), (d_weight, of_all), (d_bias, of_all)
    for place, need, dtype, (direction, factor) in zip(
        (0, 1, 3), ctx.needs, ctx.dtypes, found, strict=True
    ):
        if need:
            grads[place] = _scaled(direction, factor, dtype)
    return tuple(grads)


def _scaled(direction: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """direction ⊙ factors in `dtype`, in the direction's own memory where nobody can tell.

    A second backward through the same graph would find it scaled already: autograd sees that a
    saved tensor was changed and raises. While a compiler traces, the product is an ordinary one.
    """
    if type(direction) is not Tensor:
        shape = (-1,) + (1,) * (direction.dim() - 1)
        return (direction.to(factors.dtype) * factors.view(shape)).to(dtype)
    same = direction.dtype == dtype
    out = direction if same else direction.new_empty(direction.shape, dtype=dtype)
    return scale_rows(direction, factors, out).detach()


torch.library.register_autograd(pair_scores_op, _backward, setup_context=_setup_context)
