"""What the passes work on: two heads, targets, options; free of autograd and of public checks."""

from dataclasses import dataclass
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

from .gemm import compute_dtype
from .logits import DIFFERENTIABLE, KLS, LogitTransform


@dataclass(frozen=True)
class Head:
    """A linear head and the hidden states that enter it."""

    hidden: Tensor  # (T, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)


@dataclass(frozen=True)
class Shard:
    """The slice of the vocabulary that this process holds; by default all of it.

    Attributes:
        group: name of the process group that holds the other slices, "" for none.
        first_class: class of row 0 of the weight.
        widest: rows of the widest slice of all, from which every process derives the same chunks.
    """

    group: str = ""
    first_class: int = 0
    widest: int = 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over the group, in place."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max_(self, tensor: Tensor) -> Tensor:
        """The maximum over the group, in place."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def _reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.group:
            group = _resolve_process_group(self.group)  # type: ignore[arg-type]
            dist.all_reduce(tensor, operation, group=group)
        return tensor


@dataclass(frozen=True)
class Scored:
    """The N rows that count, of T: those whose target is not `ignore_index`.

    Attributes:
        places: (N,) int64, or None where all rows count (nothing is gathered then).
        count: N.
    """

    places: Tensor | None
    count: int

    def pick(self, values: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start..stop of the counting ones, from values (T, …); a view where all count."""
        if self.places is None:
            return values[start:stop]
        return values.index_select(0, self.places[start:stop])

    def put_(self, out: Tensor, start: int, stop: int, values: Tensor) -> None:
        """The inverse of `pick`: out[places[start:stop]] = values, out (T, …)."""
        if self.places is None:
            out[start:stop] = values
        else:
            out.index_copy_(0, self.places[start:stop], values.to(out.dtype))


@dataclass(frozen=True)
class Problem:
    """Everything that one or two passes need.

    Attributes:
        policy, reference: the two heads; no reference when no output needs one.
        targets: (T,) int64.
        ignore_index: target value of rows that are skipped.
        outputs: names from `logits.OUTPUTS`, in the order of the rows of `stats`.
        transform: scale, softcap, temperature.
        budget: bytes for logits buffers, 0 for the default.
        num_scored: N if the caller knows it, else −1: on a GPU, counting is a synchronisation.
        kernels: `rows_torch` or `rows_triton`.
        shard: the slice of the vocabulary that is here.
    """

    policy: Head
    reference: Head | None
    targets: Tensor
    ignore_index: int
    outputs: tuple[str, ...]
    transform: LogitTransform
    budget: int
    num_scored: int
    kernels: ModuleType
    shard: Shard

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.policy.hidden.dtype)

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(name for name in self.outputs if name in DIFFERENTIABLE)

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
        return scored_rows(self.targets, self.ignore_index, self.num_scored)

    def bias(self, head: Head | None, start: int = 0, stop: int | None = None) -> Tensor | None:
        if head is None or head.bias is None:
            return None
        return head.bias[start:stop].to(self.dtype).contiguous()


def scored_rows(targets: Tensor, ignore_index: int, num_scored: int) -> Scored:
    """The rows whose target is not `ignore_index`; their number is counted where it is −1."""
    counts = targets != ignore_index
    if num_scored == len(targets):
        message = f"num_scored is {num_scored}, every row, but some rows are ignored"
        refuse_unless(counts.all(), message)
        return Scored(None, num_scored)
    if num_scored >= 0:
        right = counts.sum() == num_scored
        message = f"num_scored is {num_scored}, not the number of rows not ignored"
        refuse_unless(right, message)
        order = torch.argsort(~counts, stable=True)  # the rows that count come first, in order
        return Scored(order[:num_scored], num_scored)
    places = counts.nonzero().squeeze(1)
    whole = len(places) == len(targets)
    return Scored(None if whole else places, len(places))


def refuse_unless(right: Tensor, message: str) -> None:
    """ValueError on a CPU; on a GPU a device-side assertion, which costs no synchronisation.

    Inside a compiled graph nothing is looked at on a CPU.
    """
    if right.is_cuda:
        torch._assert_async(right, message)
    elif not torch.compiler.is_compiling() and not bool(right):
        raise ValueError(message)
