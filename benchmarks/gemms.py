"""The bare matrix products of our own schedules: the limit that the rest of the work is held to.

The schedule itself is run once, with row kernels that do nothing, and every matrix product it asks
torch for is written down: operands, buffers, order. What is timed afterwards is these products
and nothing else, so the limit follows the schedules when they change. On a GPU with bf16 inputs
the gradient by the logits is a rounded copy of the logits: zeros would multiply faster than data.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.no_rows import NoRows
from benchmarks.problems import IGNORE, Problem
from benchmarks.ways.base import Unavailable, Way, objective
from prefkit.schedule import obstacle_to_one_pass
from prefkit_kernels import backward, forward, one_pass
from prefkit_kernels import problem as schedule_problem
from prefkit_kernels.logits import LogitTransform

_PRODUCTS = frozenset(
    {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_, torch.ops.aten.bmm}
)


@dataclass
class Products:
    """Matrix products in order, ready to be repeated in the same buffers."""

    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = field(
        default_factory=list
    )

    @property
    def flops(self) -> int:
        """2·M·N·K, summed."""
        total = 0
        for _, args, _ in self.calls:
            a, b = [x for x in args if isinstance(x, Tensor)][-2:]
            total += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return total

    @torch.no_grad()
    def __call__(self) -> None:
        for product, args, named in self.calls:
            product(*args, **named)


class _Recorder(TorchDispatchMode):
    """Writes down the products of the code that runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.products = Products()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _PRODUCTS:
            self.products.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def products(problem: Problem, schedule: str) -> Products:
    """The products of "one_pass" or "two_pass" for a problem, in buffers of their own."""
    work = _as_scheduled(problem)
    needs = (True, not problem.case.frozen, False)
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        if schedule == "one_pass":
            tokens = problem.case.tokens
            coefficients = problem.hidden.new_ones(2, tokens, dtype=work.dtype)
            pairs = problem.segments.clamp(min=0) // 2
            one_pass.pair_scores(work, pairs, coefficients, problem.case.pairs, needs)
        else:
            stats, norms, _ = forward.forward(work, False)
            backward.backward(work, stats, norms, torch.ones_like(stats), needs)
    return recorder.products


def _as_scheduled(problem: Problem) -> schedule_problem.Problem:
    """The problem as the schedules take it, with silent row kernels."""
    head = schedule_problem.Head(problem.hidden.detach(), problem.weight.detach(), None)
    reference = None
    outputs: tuple[str, ...] = ("logp",)
    if problem.ref_logp is None:
        reference = schedule_problem.Head(problem.ref_hidden, problem.ref_weight, None)
        outputs = ("logp", "ref_logp")
    if problem.case.loss == "tdpo2":
        outputs = ("logp", "ref_logp", "kl")
    return schedule_problem.Problem(
        policy=head,
        reference=reference,
        targets=problem.labels,
        ignore_index=IGNORE,
        outputs=outputs,
        transform=LogitTransform(1.0, 0.0, 1.0),
        budget=0,
        num_scored=-1,
        kernels=NoRows,  # type: ignore[arg-type]  # a namespace with the module's functions
        shard=schedule_problem.Shard(),
    )


def _of_auto(problem: Problem) -> Products:
    """The schedule that prefkit picks itself."""
    return products(problem, "one_pass" if _takes_one_pass(problem) else "two_pass")


def _of_two_passes(problem: Problem) -> Products:
    if not _takes_one_pass(problem):
        raise Unavailable("the same as the bare products above")
    return products(problem, "two_pass")


def _takes_one_pass(problem: Problem) -> bool:
    case = problem.case
    return obstacle_to_one_pass(objective(case), case.pairs, not case.frozen, "auto") is None


GEMMS = (
    Way("gemms", "bare matrix products", prepare=_of_auto, backward=False),
    Way(
        "gemms_two_pass", "bare matrix products, two passes", prepare=_of_two_passes, backward=False
    ),
)
