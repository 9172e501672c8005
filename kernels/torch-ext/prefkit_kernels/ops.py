"""`token_stats` as torch.library operators: forward, backward, their fakes and their autograd.

Being operators, they are opaque to `torch.compile` (no graph break), have static output shapes
(scored rows are gathered inside) and are checked by `torch.library.opcheck`. `ops_pairs` has those
of `pair_scores`.
"""

from typing import Any

import torch
from torch import Tensor

from .backward import backward
from .forward import forward, scale_directions
from .gemm import compute_dtype
from .logits import DIFFERENTIABLE, OUTPUTS
from .problem_args import NAMESPACE, NUM_SETTINGS, NUM_TENSORS, SETTINGS, TENSORS, plain, problem_of


@torch.library.custom_op(
    f"{NAMESPACE}::token_stats",
    mutates_args=(),
    schema=f"({TENSORS}, {SETTINGS}, bool with_directions) -> (Tensor, Tensor, Tensor)",
)
def token_stats_op(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(stats (K, T), norms (4, T), directions (K', T, D)); see `forward.forward`."""
    *problem, with_directions = args
    with plain(args[0]):
        return forward(problem_of(*problem), with_directions)


@token_stats_op.register_fake
def _token_stats_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, outputs, with_directions = args[0], args[NUM_TENSORS], args[-1]
    dtype = compute_dtype(hidden.dtype)
    tokens, dim = hidden.shape
    directions = sum(OUTPUTS[k] in DIFFERENTIABLE for k in outputs) if with_directions else 0
    return (
        hidden.new_empty(len(outputs), tokens, dtype=dtype),
        hidden.new_empty(4, tokens, dtype=dtype),
        hidden.new_empty(directions, tokens, dim),
    )


@torch.library.custom_op(
    f"{NAMESPACE}::token_stats_backward",
    mutates_args=(),
    schema=(
        f"(Tensor cotangents, Tensor stats, Tensor norms, {TENSORS}, {SETTINGS}, "
        "bool need_hidden, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)"
    ),
)
def token_stats_backward_op(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(d hidden, d weight, d bias), each empty where not needed; see `backward.backward`."""
    cotangents, stats, norms, *problem = args[:-3]
    hidden = problem[0]
    with plain(hidden):
        grads = backward(problem_of(*problem), stats, norms, cotangents, args[-3:])
    found = [hidden.new_empty(0) if grad is None else grad for grad in grads]
    return found[0], found[1], found[2]


@token_stats_backward_op.register_fake
def _token_stats_backward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, _, bias = args[3:7]
    found = [
        tensor.new_empty(tensor.shape) if need and tensor is not None else hidden.new_empty(0)
        for tensor, need in zip((hidden, weight, bias), args[-3:], strict=True)
    ]
    return found[0], found[1], found[2]


@torch.library.custom_op(f"{NAMESPACE}::scale_directions", mutates_args=())
def scale_directions_op(directions: Tensor, cotangents: Tensor, skipped: Tensor) -> Tensor:
    """See `forward.scale_directions`; an operator, so that a second derivative is refused."""
    with plain(directions):
        return scale_directions(directions, cotangents, skipped)


@scale_directions_op.register_fake
def _scale_directions_fake(directions: Tensor, cotangents: Tensor, skipped: Tensor) -> Tensor:
    return directions.new_empty(directions.shape[1:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.settings = inputs[NUM_TENSORS : NUM_TENSORS + NUM_SETTINGS]
    stats, norms, directions = output
    ctx.one_pass = directions.shape[0] > 0
    if ctx.one_pass:
        ctx.save_for_backward(directions, inputs[2])
    else:
        ctx.save_for_backward(stats, norms, *inputs[:NUM_TENSORS])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_stats: Tensor | None, *_unused: Any) -> tuple[Any, ...]:
    grads: list[Any] = [None] * (NUM_TENSORS + NUM_SETTINGS + 1)
    if grad_stats is None:
        return tuple(grads)
    if ctx.one_pass:
        directions, targets = ctx.saved_tensors
        outputs, ignore_index = ctx.settings[:2]
        kept = [k for k, code in enumerate(outputs) if OUTPUTS[code] in DIFFERENTIABLE]
        cotangents = torch.stack([grad_stats[k] for k in kept])
        grads[0] = scale_directions_op(directions, cotangents, targets == ignore_index)
        return tuple(grads)
    stats, norms, *tensors = ctx.saved_tensors
    places = (0, 1, 3)  # hidden, weight, bias
    needs = [ctx.needs_input_grad[place] for place in places]
    found = token_stats_backward_op(
        grad_stats.contiguous(), stats, norms, *tensors, *ctx.settings, *needs
    )
    for place, need, grad in zip(places, needs, found, strict=True):
        grads[place] = grad if need else None
    return tuple(grads)


torch.library.register_autograd(token_stats_op, _backward, setup_context=_setup_context)
