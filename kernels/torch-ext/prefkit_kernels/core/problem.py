"""One call: two heads, targets, options, free of autograd; and as the operators take it.

Operators take flat tensors and settings, whose order is written only here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ..vocab_parallel import Shard
from .backend import kernels_of
from .gemm import compute_dtype
from .logits import LogitScaling
from .outputs import KLS, OUTPUTS, differentiated

TENSORS = (
    "Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, "
    "Tensor? ref_hidden, Tensor? ref_weight, Tensor? ref_bias"
)
SETTINGS = (
    "int[] outputs, int[] detached, int ignore_index, float scale, float softcap, "
    "float temperature, int budget, int num_scored, str backend, str group, int first_class, "
    "int widest, int classes"
)
NUM_TENSORS = TENSORS.count(",") + 1
NUM_SETTINGS = SETTINGS.count(",") + 1


@dataclass(frozen=True)
class HeadInputs:
    """A linear head and the hidden states that enter it."""

    hidden: Tensor  # (T, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)


@dataclass(frozen=True)
class Scored:
    """The N positions that count, of T: those whose target is not `ignore_index`.

    Attributes:
        positions: (N,) int64, or None where all count (nothing is gathered then).
        count: N.
    """

    positions: Tensor | None
    count: int

    def pick(self, values: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Tokens start..stop of the counting ones, from values (T, …); a view where all count."""
        if self.positions is None:
            return values[start:stop]
        return values.index_select(0, self.positions[start:stop])

    def put_(self, out: Tensor, start: int, stop: int, values: Tensor) -> None:
        """The inverse of `pick`: out[positions[start:stop]] = values, out (T, …)."""
        if self.positions is None:
            out[start:stop] = values
        else:
            out.index_copy_(0, self.positions[start:stop], values.to(out.dtype))


@dataclass(frozen=True)
class Problem:
    """Everything that one or two passes need.

    Attributes:
        policy, reference: the two heads; no reference when no output needs one.
        targets: (T,) int64.
        ignore_index: target value of positions that are skipped.
        outputs: names from `outputs.OUTPUTS`, in the order of the rows of `stats`.
        scaling: scale, softcap, temperature.
        budget: bytes for logits buffers, 0 for the default.
        num_scored: N if the caller knows it, else −1: on a GPU, counting is a synchronisation.
        kernels: `backends.torch` or `backends.triton`.
        shard: the slice of the vocabulary that is here.
        detached: outputs that get no gradient, though they could.
    """

    policy: HeadInputs
    reference: HeadInputs | None
    targets: Tensor
    ignore_index: int
    outputs: tuple[str, ...]
    scaling: LogitScaling
    budget: int
    num_scored: int
    kernels: ModuleType
    shard: Shard
    detached: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.policy.hidden.dtype)

    @property
    def differentiated(self) -> tuple[str, ...]:
        """The outputs that get a gradient."""
        return differentiated(self.outputs, self.detached)

    @property
    def wants_kl(self) -> bool:
        """Whether logits of policy and reference are needed side by side."""
        return self.reference is not None and bool(KLS & set(self.outputs))

    @property
    def shares_head(self) -> bool:
        """Whether policy and reference have one weight, in one memory (LoRA, a frozen head).

        Slices of a split vocabulary count as different: all processes must take the same chunks,
        and an empty slice says nothing of its memory.
        """
        if self.reference is None or self.reference.hidden.dtype != self.policy.hidden.dtype:
            return False
        mine, other = self.policy.weight, self.reference.weight
        if self.shard.group or not mine.numel():
            return False
        return (mine.data_ptr(), mine.shape, mine.stride(), mine.dtype) == (
            other.data_ptr(),
            other.shape,
            other.stride(),
            other.dtype,
        )

    def scored(self) -> Scored:
        return scored_positions(self.targets, self.ignore_index, self.num_scored)

    def bias(
        self, head: HeadInputs | None, start: int = 0, stop: int | None = None
    ) -> Tensor | None:
        if head is None or head.bias is None:
            return None
        return head.bias[start:stop].to(self.dtype).contiguous()


def problem_of(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
    outputs: Sequence[int],
    detached: Sequence[int],
    ignore_index: int,
    scale: float,
    softcap: float,
    temperature: float,
    budget: int,
    num_scored: int,
    backend: str,
    group: str,
    first_class: int,
    widest: int,
    classes: int,
) -> Problem:
    """From an operator's arguments."""
    reference = None
    if ref_hidden is not None and ref_weight is not None:
        reference = HeadInputs(ref_hidden, ref_weight, ref_bias)
    return Problem(
        policy=HeadInputs(hidden, weight, bias),
        reference=reference,
        targets=targets.contiguous(),
        ignore_index=ignore_index,
        outputs=names_of(outputs),
        scaling=LogitScaling(scale, softcap, temperature),
        budget=budget,
        num_scored=num_scored,
        kernels=kernels_of(backend),
        shard=Shard(group, first_class, widest, classes),
        detached=names_of(detached),
    )


def names_of(outputs: Sequence[int]) -> tuple[str, ...]:
    """Names of outputs from their numbers, as which the operators take them."""
    return tuple(OUTPUTS[k] for k in outputs)


def scored_positions(targets: Tensor, ignore_index: int, num_scored: int) -> Scored:
    """The positions whose target is not `ignore_index`; their number is counted where it is −1."""
    counts = targets != ignore_index
    if num_scored == len(targets):
        message = f"num_scored is {num_scored}, every position, but some are ignored"
        refuse_unless(counts.all(), message)
        return Scored(None, num_scored)
    if num_scored >= 0:
        right = counts.sum() == num_scored
        message = f"num_scored is {num_scored}, not the number of positions not ignored"
        refuse_unless(right, message)
        order = torch.argsort(~counts, stable=True)  # those that count come first, in order
        return Scored(order[:num_scored], num_scored)
    positions = counts.nonzero().squeeze(1)
    whole = len(positions) == len(targets)
    return Scored(None if whole else positions, len(positions))


def refuse_unless(right: Tensor, message: str) -> None:
    """ValueError on a CPU; on a GPU a device-side assertion, which costs no synchronisation.

    Inside a compiled graph nothing is looked at on a CPU.
    """
    if right.is_cuda:
        torch._assert_async(right, message)
    elif not torch.compiler.is_compiling() and not bool(right):
        raise ValueError(message)


@contextlib.contextmanager
def plain(tensor: Tensor) -> Iterator[None]:
    """No autocast, and the tensor's own GPU as the current one for Triton's launches."""
    with torch.autocast(tensor.device.type, enabled=False), torch.cuda.device_of(tensor):
        yield
