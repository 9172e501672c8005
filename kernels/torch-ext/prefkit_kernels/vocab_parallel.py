"""Heads whose vocabulary is split over processes: each holds a slice of the rows of the weight.

    shard = VocabShard(group, vocab_size=128_256)
    stats = token_stats(hidden, local_weight, targets, ref_hidden=…, ref_weight=local_ref, …,
                        vocab_shard=shard)

Hidden states and targets are the same on all processes of the group (tensor parallelism; gather
sequence-parallel ones first), and so are the statistics that come back. What is reduced, per chunk
of tokens and in fp32: maxima and target logits (one all-reduce of 2 numbers a token), sums of
exponentials (1), sums of KL terms and the like (1 an output), and the gradient of hidden (D). The
gradient of a process's slice of the weight needs no communication.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group


@dataclass(frozen=True)
class VocabShard:
    """This process's slice of a vocabulary, cut as `DTensor` with `Shard(0)` cuts rows.

    Every process has ⌈vocab_size / processes⌉ rows, the last ones fewer or none. Policy and
    reference are cut alike; pad the shorter one, with a bias of −inf in the padded classes.

    Args:
        group: the processes that together hold the vocabulary.
        vocab_size: V, number of classes over all of them.
    Raises:
        ValueError: group is no process group, vocab_size no positive whole number.
    """

    group: dist.ProcessGroup
    vocab_size: int

    def __post_init__(self) -> None:
        if not isinstance(self.group, dist.ProcessGroup):
            raise ValueError(
                f"group must be a ProcessGroup, got {self.group!r}: call init_process_group first, "
                "and give mesh.get_group() of a DeviceMesh"
            )
        if not isinstance(self.vocab_size, int) or not self.vocab_size > 0:
            raise ValueError(f"vocab_size must be a whole number > 0, got {self.vocab_size!r}")

    @property
    def widest(self) -> int:
        """Rows of the first process's slice, the widest of all."""
        return -(-self.vocab_size // self.group.size())

    @property
    def start(self) -> int:
        """Class of this process's first row."""
        return min(self.vocab_size, self.group.rank() * self.widest)

    @property
    def stop(self) -> int:
        """Class after this process's last row."""
        return min(self.vocab_size, self.start + self.widest)

    def check(self, weight: Tensor, ref_weight: Tensor | None) -> int:
        """Number of classes over all processes.

        Raises:
            ValueError: a weight that does not have the rows of this slice.
        """
        rows = self.stop - self.start
        for name, tensor in (("weight", weight), ("ref_weight", ref_weight)):
            if tensor is not None and tensor.shape[0] != rows:
                raise ValueError(
                    f"{name} has {tensor.shape[0]} rows, but process {self.group.rank()} of "
                    f"{self.group.size()} holds classes {self.start}..{self.stop - 1} of "
                    f"{self.vocab_size}: {rows} rows (⌈V / processes⌉ each, as DTensor's Shard(0) "
                    "cuts; policy and reference alike)"
                )
        return self.vocab_size


@dataclass(frozen=True)
class Shard:
    """A `VocabShard` as the operators take it: plain values, and the reductions over the group.

    By default the slice is all of the vocabulary.

    Attributes:
        group: name of the process group that holds the other slices, "" for none.
        first_class: class of row 0 of the weight.
        widest: rows of the widest slice of all, from which every process derives the same chunks.
        classes: rows of all slices together.
    """

    group: str = ""
    first_class: int = 0
    widest: int = 0
    classes: int = 0

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
