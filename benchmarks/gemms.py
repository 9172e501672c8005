"""The bare matrix products of our own loss: the limit that the rest of the work is held to.

Two limits. The products as the loss cuts them into chunks say what the rest costs; one product
of the whole size a unit, in the inputs' own dtype, says what the cutting and the fp32 results cost
as well, and is what a loss could at best be.

The loss itself is run once, with kernels that do nothing, and every matrix product it asks
torch for is written down: operands, buffers, order. What is timed afterwards is these products
and nothing else, so the limit follows the loss when it changes. On a GPU with bf16 inputs
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
from prefkit.loss.passes import choose
from prefkit_kernels.core import problem as head_problem
from prefkit_kernels.core.logits import LogitScaling
from prefkit_kernels.pair_scores import keep_dz, one_pass
from prefkit_kernels.token_stats.passes import backward, forward
from prefkit_kernels.vocab_parallel import Shard

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


def products(problem: Problem, passes: str) -> Products:
    """The products of "one_pass", "keep_dz" or "two_pass" for a problem, in their own buffers."""
    work = _of_head(problem)
    needs = (True, not problem.case.frozen, False)
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        if passes == "two_pass":
            stats, norms, _ = forward(work, False)
            backward(work, stats, norms, torch.ones_like(stats), needs)
        else:
            tokens, keep = problem.case.tokens, passes == "keep_dz"
            coefficients = problem.hidden.new_ones(2, tokens, dtype=work.dtype)
            pairs = problem.segments.clamp(min=0) // 2
            made = one_pass.pair_scores(
                work, pairs, coefficients, problem.case.pairs, needs, keep and needs[1]
            )
            dz, scale = made[5:]
            if dz is not None and scale is not None:
                rows = (work.policy.hidden, work.targets, coefficients[0], IGNORE)
                settings = (problem.case.vocab, problem.weight.dtype, False)
                keep_dz.gradients(dz, scale, *rows, *settings)
    return recorder.products


def whole_products(problem: Problem, passes: str) -> Products:
    """As many operations, as few products of the whole size: policy, reference, dH, dW."""
    case = problem.case
    hidden = problem.hidden.detach()[: case.scored]
    weight = problem.weight.detach()
    logits = hidden @ weight.T
    forwards = 2 if passes == "two_pass" else 1
    with_reference = problem.ref_logp is None
    again = passes == "two_pass" and case.loss == "tdpo2"
    found = Products()
    for _ in range(forwards + with_reference + again):
        found.calls.append((torch.mm, (hidden, weight.T), {"out": logits}))
    found.calls.append((torch.mm, (logits, weight), {"out": torch.empty_like(hidden)}))
    if not case.frozen:
        found.calls.append((torch.mm, (logits.T, hidden), {"out": torch.empty_like(weight)}))
    return found


def _of_head(problem: Problem) -> head_problem.Problem:
    """The problem as the head's code takes it, with silent kernels."""
    head = head_problem.HeadInputs(problem.hidden.detach(), problem.weight.detach(), None)
    reference = None
    outputs: tuple[str, ...] = ("logp",)
    if problem.ref_logp is None:
        reference = head_problem.HeadInputs(problem.ref_hidden, problem.ref_weight, None)
        outputs = ("logp", "ref_logp")
    if problem.case.loss == "tdpo2":
        outputs = ("logp", "ref_logp", "kl")
    return head_problem.Problem(
        policy=head,
        reference=reference,
        targets=problem.labels,
        ignore_index=IGNORE,
        outputs=outputs,
        scaling=LogitScaling(1.0, 0.0, 1.0),
        budget=0,
        num_scored=-1,
        kernels=NoRows,  # type: ignore[arg-type]  # a namespace with the module's functions
        shard=Shard(),
    )


def _passes(problem: Problem) -> str:
    """The passes that prefkit chooses itself."""
    heads = (problem.hidden, problem.weight, problem.targets)
    options = {"num_scored": problem.case.scored}
    pairs = problem.case.pairs
    return choose("auto", objective(problem.case), pairs, heads, options) or "two_pass"


def _of_auto(problem: Problem) -> Products:
    return products(problem, _passes(problem))


def _of_whole(problem: Problem) -> Products:
    return whole_products(problem, _passes(problem))


def _of_two_passes(problem: Problem) -> Products:
    if _passes(problem) == "two_pass":
        raise Unavailable("the same as the bare products above")
    return products(problem, "two_pass")


GEMMS = (
    Way("gemms", "bare matrix products, as cut into chunks", prepare=_of_auto, backward=False),
    Way("gemms_whole", "bare matrix products, whole size", prepare=_of_whole, backward=False),
    Way(
        "gemms_two_pass", "bare matrix products, two passes", prepare=_of_two_passes, backward=False
    ),
)
