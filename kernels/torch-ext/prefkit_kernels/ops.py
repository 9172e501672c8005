"""`token_stats` as torch.library operators: forward, backward, their fakes and their autograd.

Being operators, they are opaque to `torch.compile` (no graph break), have static output shapes
(scored rows are gathered inside) and are checked by `torch.library.opcheck`. The namespace follows
the package's own name, so that a second copy loaded from a kernel hub does not collide.
"""

import contextlib
import importlib
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import schedules
from .logits import DIFFERENTIABLE, OUTPUTS, LogitTransform

_NAMESPACE = re.sub(r"\W", "_", __package__ or "prefkit_kernels")
# The problem, as both operators take it: seven tensors, then seven settings.
_TENSORS = (
    "Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, "
    "Tensor? ref_hidden, Tensor? ref_weight, Tensor? ref_bias"
)
_SETTINGS = (
    "int[] outputs, int ignore_index, float scale, float softcap, float temperature, "
    "int budget, str backend"
)
_NUM_TENSORS = 7
_NUM_SETTINGS = 7


def kernels_of(backend: str) -> ModuleType:
    """The module of row kernels behind a backend's name; Triton is imported only when used."""
    return importlib.import_module(f".rows_{backend}", __package__)


@torch.library.custom_op(
    f"{_NAMESPACE}::token_stats",
    mutates_args=(),
    schema=f"({_TENSORS}, {_SETTINGS}, bool with_directions) -> (Tensor, Tensor, Tensor)",
)
def token_stats_op(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(stats (K, T), norms (4, T), directions (K', T, D)); see `schedules.forward`."""
    *problem, with_directions = args
    with _plain(args[0]):
        return schedules.forward(_problem(*problem), with_directions)


@token_stats_op.register_fake
def _token_stats_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, outputs, with_directions = args[0], args[_NUM_TENSORS], args[-1]
    dtype = schedules.compute_dtype(hidden.dtype)
    tokens, dim = hidden.shape
    directions = sum(OUTPUTS[k] in DIFFERENTIABLE for k in outputs) if with_directions else 0
    return (
        hidden.new_empty(len(outputs), tokens, dtype=dtype),
        hidden.new_empty(4, tokens, dtype=dtype),
        hidden.new_empty(directions, tokens, dim),
    )


@torch.library.custom_op(
    f"{_NAMESPACE}::token_stats_backward",
    mutates_args=(),
    schema=(
        f"(Tensor cotangents, Tensor stats, Tensor norms, {_TENSORS}, {_SETTINGS}, "
        "bool need_hidden, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)"
    ),
)
def token_stats_backward_op(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(d hidden, d weight, d bias), each empty where not needed; see `schedules.backward`."""
    cotangents, stats, norms, *problem = args[:-3]
    hidden = problem[0]
    with _plain(hidden):
        grads = schedules.backward(_problem(*problem), stats, norms, cotangents, args[-3:])
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


@torch.library.custom_op(f"{_NAMESPACE}::scale_directions", mutates_args=())
def scale_directions_op(directions: Tensor, cotangents: Tensor, skipped: Tensor) -> Tensor:
    """See `schedules.scale_directions`; an operator, so that a second derivative is refused."""
    with _plain(directions):
        return schedules.scale_directions(directions, cotangents, skipped)


@scale_directions_op.register_fake
def _scale_directions_fake(directions: Tensor, cotangents: Tensor, skipped: Tensor) -> Tensor:
    return directions.new_empty(directions.shape[1:])


@contextlib.contextmanager
def _plain(tensor: Tensor) -> Iterator[None]:
    """No autocast, and the tensor's own GPU as the current one for Triton's launches."""
    with torch.autocast(tensor.device.type, enabled=False), torch.cuda.device_of(tensor):
        yield


def _problem(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
    outputs: Sequence[int],
    ignore_index: int,
    scale: float,
    softcap: float,
    temperature: float,
    budget: int,
    backend: str,
) -> schedules.Problem:
    reference = None
    if ref_hidden is not None and ref_weight is not None:
        reference = schedules.Head(ref_hidden, ref_weight, ref_bias)
    return schedules.Problem(
        policy=schedules.Head(hidden, weight, bias),
        reference=reference,
        targets=targets,
        ignore_index=ignore_index,
        outputs=tuple(OUTPUTS[k] for k in outputs),
        transform=LogitTransform(scale, softcap, temperature),
        budget=budget,
        kernels=kernels_of(backend),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.settings = inputs[_NUM_TENSORS : _NUM_TENSORS + _NUM_SETTINGS]
    stats, norms, directions = output
    ctx.one_pass = directions.shape[0] > 0
    if ctx.one_pass:
        ctx.save_for_backward(directions, inputs[2])
    else:
        ctx.save_for_backward(stats, norms, *inputs[:_NUM_TENSORS])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_stats: Tensor | None, *_unused: Any) -> tuple[Any, ...]:
    grads: list[Any] = [None] * (_NUM_TENSORS + _NUM_SETTINGS + 1)
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
