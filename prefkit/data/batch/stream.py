"""Where the tokens of several pairs lie in one row without padding, and who may attend to whom.

A row is a sequence of trees. A tree is a trunk of tokens followed by its tails; every tail
continues the trunk and sees nothing of the other tails:

    shared     trunk = the longest common prefix of both sequences, tails = the rest of each
    separate   one tree for each sequence: a trunk and no tail

Positions restart at each trunk and go on from it in each tail, so a model computes for every token
what it would compute in a row of its own. Everything here is plain numbers on the host: an
attention function that reads it never has to ask a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Tokens start … stop − 1 of a row."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Tree:
    """A trunk of `trunk` ≥ 1 tokens from position `start`, then tails of the given lengths."""

    start: int
    trunk: int
    tails: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """The position after the tree's last token."""
        return self.start + self.trunk + sum(self.tails)

    def tail_starts(self) -> list[int]:
        """Where each tail begins in the row."""
        starts, place = [], self.start + self.trunk
        for length in self.tails:
            starts.append(place)
            place += length
        return starts


class Attend(NamedTuple):
    """One causal attention, aligned at its end (bottom right).

    Query j sees all of `context` and the first j + 1 tokens of `queries`.
    """

    queries: Span
    context: Span | None

    @property
    def key_count(self) -> int:
        """Keys that the last query sees."""
        return len(self.queries) + (len(self.context) if self.context else 0)


@dataclass(frozen=True, eq=False)
class Stream:
    """The trees of one row, end to end.

    Attributes:
        trees: in the order of the row, without gaps.
    """

    trees: tuple[Tree, ...]
    _on_device: dict[torch.device, "Packed"] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.trees[-1].stop if self.trees else 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence (trunk and one tail): what a window or position limits."""
        return max(tree.trunk + max(tree.tails, default=0) for tree in self.trees)

    def attends(self) -> Iterator[Attend]:
        """The attentions that make up the row; their queries tile it in order.

        A trunk and its first tail follow each other, so they are one.
        """
        for tree in self.trees:
            first, *rest = tree.tails or (0,)
            split = tree.start + tree.trunk + first
            yield Attend(Span(tree.start, split), None)
            trunk = Span(tree.start, tree.start + tree.trunk)
            for length in rest:
                if length:
                    yield Attend(Span(split, split + length), trunk)
                    split += length

    def position_ids(self) -> Tensor:
        """(N,) int64 position of each token in its own sequence."""
        parts = []
        for tree in self.trees:
            parts.append(torch.arange(tree.trunk))
            parts += [torch.arange(tree.trunk, tree.trunk + length) for length in tree.tails]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def packed(self, device: torch.device) -> "Packed":
        """The attentions in the form of variable-length kernels; made once a device."""
        if device not in self._on_device:
            self._on_device[device] = Packed.of(self, device)
        return self._on_device[device]


@dataclass(frozen=True)
class Packed:
    """A stream's attentions as one variable-length call with bottom-right causal alignment.

    Attributes:
        keys: (K,) int64, which tokens are the keys of each attention, end to end: the keys of a
            trunk occur once for each tail after the first.
        cu_queries, cu_keys: (A + 1,) int32, where each attention's queries and keys begin.
        max_queries, max_keys: longest of each.
    """

    keys: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int

    @classmethod
    def of(cls, stream: Stream, device: torch.device) -> "Packed":
        """From a stream."""
        attends = list(stream.attends())
        spans = [span for a in attends for span in (a.context, a.queries) if span is not None]
        keys = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        queries = [len(a.queries) for a in attends]
        counts = [a.key_count for a in attends]
        tensors = (keys, _cumulative(queries), _cumulative(counts))
        if device.type == "cuda":  # from pinned memory a copy does not wait for the GPU
            tensors = tuple(x.pin_memory().to(device, non_blocking=True) for x in tensors)  # type: ignore[assignment]
        return cls(*tensors, max(queries), max(counts))


def _cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
