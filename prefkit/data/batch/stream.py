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
from typing import Any, NamedTuple

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


class Reach(NamedTuple):
    """How far back a token sees, by positions in its own sequence.

    Attributes:
        window: the last so many tokens, itself included (`sliding_window` of transformers), or
            None.
        chunk: the tokens of its own chunk: positions that give the same number when divided by this
            one (`attention_chunk_size`, Llama-4), or None.
    """

    window: int | None = None
    chunk: int | None = None

    def within(self, longest: int) -> "Reach":
        """The same for sequences of at most so many tokens: what hides nothing is left out."""
        window, chunk = (size if size and size < longest else None for size in self)
        return Reach(window, chunk)


EVERYTHING = Reach()


class Attend(NamedTuple):
    """One causal attention, aligned at its end (bottom right).

    Query j sees all of `context` and the first j + 1 tokens of `queries`; of these the last
    `window` where the reach has one.
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
    _on_device: dict[Any, "Packed"] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.trees[-1].stop if self.trees else 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence (trunk and one tail): what a window or position limits."""
        return max(tree.trunk + max(tree.tails, default=0) for tree in self.trees)

    def attends(self, reach: Reach = EVERYTHING) -> Iterator[Attend]:
        """The attentions that make up the row; their queries tile it in order.

        A trunk and its first tail follow each other, so they are one. Chunks cut attentions into
        several; a window leaves out of each context what its first query cannot see.
        """
        for tree in self.trees:
            first, *rest = tree.tails or (0,)
            split = tree.start + tree.trunk + first
            yield from _reached(Attend(Span(tree.start, split), None), reach)
            trunk = Span(tree.start, tree.start + tree.trunk)
            for length in rest:
                if length:
                    yield from _reached(Attend(Span(split, split + length), trunk), reach)
                    split += length

    def position_ids(self) -> Tensor:
        """(N,) int64 position of each token in its own sequence."""
        parts = []
        for tree in self.trees:
            parts.append(torch.arange(tree.trunk))
            parts += [torch.arange(tree.trunk, tree.trunk + length) for length in tree.tails]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def packed(self, device: torch.device, reach: Reach = EVERYTHING) -> "Packed":
        """The attentions in the form of variable-length kernels; made once a device and reach."""
        if (device, reach) not in self._on_device:
            self._on_device[device, reach] = Packed.of(self, device, reach)
        return self._on_device[device, reach]


def _reached(one: Attend, reach: Reach) -> Iterator[Attend]:
    """An attention of a whole context as those that a reach leaves of it."""
    queries, context = one
    before = len(context) if context else 0  # a context starts at position 0
    if reach.window is not None and context is not None:
        context = Span(max(context.start, context.stop - reach.window + 1), context.stop)
    if reach.chunk is None:
        yield Attend(queries, context if context and len(context) else None)
        return
    position = before
    while position < before + len(queries):
        chunk = position - position % reach.chunk
        stop = min(chunk + reach.chunk, before + len(queries))
        piece = Span(*(queries.start + place - before for place in (position, stop)))
        # Only the first piece may begin within a chunk, and only behind a context.
        seen = Span(context.stop - (before - chunk), context.stop) if context else None
        yield Attend(piece, seen if position == before and position > chunk else None)
        position = stop


@dataclass(frozen=True)
class Packed:
    """A stream's attentions as one variable-length call with bottom-right causal alignment.

    Attributes:
        keys: (K,) int64, which tokens are the keys of each attention, end to end: the keys of a
            trunk occur once for each tail after the first.
        cu_queries, cu_keys: (A + 1,) int32, where each attention's queries and keys begin.
        max_queries, max_keys: longest of each.
        window: keys that a query sees, the last ones up to itself; None = all.
    """

    keys: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int
    window: int | None = None

    @classmethod
    def of(cls, stream: Stream, device: torch.device, reach: Reach = EVERYTHING) -> "Packed":
        """From a stream."""
        attends = list(stream.attends(reach))
        spans = [span for a in attends for span in (a.context, a.queries) if span is not None]
        keys = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        queries = [len(a.queries) for a in attends]
        counts = [a.key_count for a in attends]
        tensors = (keys, _cumulative(queries), _cumulative(counts))
        if device.type == "cuda":  # from pinned memory a copy does not wait for the GPU
            tensors = tuple(x.pin_memory().to(device, non_blocking=True) for x in tensors)  # type: ignore[assignment]
        return cls(*tensors, max(queries), max(counts), reach.window)


def _cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
