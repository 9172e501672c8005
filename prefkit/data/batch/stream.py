"""Where the tokens of several sequences lie in one row without padding, and who may see whom.

A row is a sequence of trees. A node of a tree is a run of tokens that continues its parent's; a
sequence is the path from a root to a leaf. Nodes are in depth-first order, a node before its
children, so that the descendants of a node follow it without a gap, and "token j is before token i
in its sequence" is an interval test: j ≤ i < end of j's subtree.

    tree       all sequences of a question, each token once
    shared     one tree for each pair: a trunk, and the rest of each side
    separate   one tree for each sequence: a root and no children

Positions count from the root along each path, so a model computes for every token what it would
compute in a row of its own. Everything here is plain numbers on the host: an attention function
that reads it never has to ask a GPU.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Span(NamedTuple):
    """Tokens start … stop − 1 of a row."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Node(NamedTuple):
    """A run of `length` ≥ 0 tokens that continues node `parent` of the same row; −1 = a root."""

    length: int
    parent: int = -1


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
    `window` where the reach has one. The spans of the context follow each other in the sequence,
    not in the row.
    """

    queries: Span
    context: tuple[Span, ...] = ()

    @property
    def before(self) -> int:
        """Tokens of the context."""
        return sum(map(len, self.context))

    @property
    def key_count(self) -> int:
        """Keys that the last query sees."""
        return len(self.queries) + self.before


@dataclass(frozen=True, eq=False)
class Stream:
    """The trees of one row, end to end.

    Attributes:
        nodes: in depth-first order; a parent is the node before or one of its ancestors.
    """

    nodes: tuple[Node, ...]

    @classmethod
    def of(cls, *trees: Any) -> "Stream":
        """Trees from nested lengths: `Stream.of(9, (7, 3, (5, 2, 4)))` has a root of 9 tokens, and
        one of 7 with the children 3 and 5, which itself has 2 and 4."""
        nodes: list[Node] = []

        def grow(tree: Any, parent: int) -> None:
            length, *children = tree if isinstance(tree, tuple) else (tree,)
            nodes.append(Node(length, parent))
            own = len(nodes) - 1
            for child in children:
                grow(child, own)

        for tree in trees:
            grow(tree, -1)
        return cls(tuple(nodes))

    def __getstate__(self) -> dict[str, Any]:
        return {"nodes": self.nodes}  # the rest is made of them, wherever it is wanted

    @cached_property
    def _made(self) -> dict[Any, Any]:
        return {}

    def once(self, make: Callable[..., Made], *key: Any) -> Made:
        """make(stream, *key), made once for all layers that ask: kept as long as the stream."""
        if (make, key) not in self._made:
            self._made[make, key] = make(self, *key)
        return self._made[make, key]

    def __len__(self) -> int:
        return self.spans[-1].stop if self.nodes else 0

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Where each node lies in the row."""
        spans, place = [], 0
        for node in self.nodes:
            spans.append(Span(place, place + node.length))
            place += node.length
        return tuple(spans)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """The position of each node's first token in its sequence."""
        depths: list[int] = []
        for node in self.nodes:
            above = 0 if node.parent < 0 else depths[node.parent] + self.nodes[node.parent].length
            depths.append(above)
        return tuple(depths)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Where in the row the descendants of each node end."""
        ends = [span.stop for span in self.spans]
        for index in range(len(self.nodes) - 1, -1, -1):  # children before their parents
            parent = self.nodes[index].parent
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[index])
        return tuple(ends)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence: what a window or position limits."""
        return max((d + n.length for d, n in zip(self.depths, self.nodes, strict=True)), default=0)

    def paths(self) -> Iterator[tuple[Span, ...]]:
        """The sequences, in the order of the row: each as its spans from the root on.

        Empty leaves have none of their own.
        """
        routes = self._routes
        for node, span, end in zip(range(len(self.nodes)), self.spans, self.ends, strict=True):
            if len(span) and end == span.stop:
                yield _merged(routes[node])

    @cached_property
    def _routes(self) -> tuple[tuple[Span, ...], ...]:
        """The spans from its root to each node, the node included; adjacent ones are one."""
        routes: list[tuple[Span, ...]] = []
        for node, span in zip(self.nodes, self.spans, strict=True):
            above = routes[node.parent] if node.parent >= 0 else ()
            routes.append(_merged((*above, span)))
        return tuple(routes)

    @cached_property
    def chains(self) -> tuple[Attend, ...]:
        """Runs of nodes that follow each other in row and sequence, with what lies before them.

        A node and the first of its children are one causal attention; a further child begins
        another, behind the path to it.
        """
        chains: list[Attend] = []
        for node, span in zip(self.nodes, self.spans, strict=True):
            last = chains[-1] if chains else None
            if not len(span):
                continue
            above = self._routes[node.parent] if node.parent >= 0 else ()
            if last is not None and above and above[-1].stop == span.start:
                chains[-1] = Attend(Span(last.queries.start, span.stop), last.context)
            else:
                chains.append(Attend(span, above))
        return tuple(chains)

    def attends(self, reach: Reach = EVERYTHING) -> Iterator[Attend]:
        """The attentions that make up the row; their queries tile it in order.

        Chunks cut attentions into several; a window leaves out of each context what its first query
        cannot see.
        """
        for one in self.chains:
            yield from _reached(one, reach)

    def position_ids(self) -> Tensor:
        """(N,) int64 position of each token in its own sequence; a tensor of the caller's own."""
        return self.positions.clone()

    @cached_property
    def positions(self) -> Tensor:
        """(N,) int64 position of each token in its own sequence."""
        parts = [
            torch.arange(depth, depth + node.length)
            for depth, node in zip(self.depths, self.nodes, strict=True)
        ]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    @cached_property
    def ends_of_tokens(self) -> Tensor:
        """(N,) int64: token j is seen by the tokens i with j ≤ i < ends[j], and by no others."""
        lengths = torch.tensor([node.length for node in self.nodes], dtype=torch.int64)
        return torch.tensor(self.ends, dtype=torch.int64).repeat_interleave(lengths)


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same tokens with empty spans left out and adjacent ones put together."""
    merged: list[Span] = []
    for span in spans:
        if not len(span):
            continue
        if merged and merged[-1].stop == span.start:
            merged[-1] = Span(merged[-1].start, span.stop)
        else:
            merged.append(span)
    return tuple(merged)


def last_of(spans: tuple[Span, ...], count: int) -> tuple[Span, ...]:
    """The last `count` tokens of some spans."""
    kept: list[Span] = []
    for span in reversed(spans):
        if count <= 0:
            break
        kept.append(Span(max(span.start, span.stop - count), span.stop))
        count -= len(kept[-1])
    return tuple(reversed(kept))


def _reached(one: Attend, reach: Reach) -> Iterator[Attend]:
    """An attention of a whole context as those that a reach leaves of it."""
    queries, context = one
    before = one.before  # a context starts at position 0
    if reach.window is not None:
        context = last_of(context, reach.window - 1)
    if reach.chunk is None:
        yield Attend(queries, context)
        return
    position = before
    while position < before + len(queries):
        chunk = position - position % reach.chunk
        stop = min(chunk + reach.chunk, before + len(queries))
        piece = Span(*(queries.start + place - before for place in (position, stop)))
        # Only the first piece may begin within a chunk, and only behind a context.
        yield Attend(piece, last_of(context, before - chunk) if position == before else ())
        position = stop


@dataclass(frozen=True)
class Packed:
    """Attentions of a stream as one variable-length call with bottom-right causal alignment.

    Attributes:
        keys: (K,) int64, which tokens are the keys of each attention, end to end: a token occurs
            once for each attention that sees it.
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
    def of(cls, attends: list[Attend], device: torch.device, reach: Reach = EVERYTHING) -> "Packed":
        """From attentions whose queries follow each other."""
        spans = [span for one in attends for span in (*one.context, one.queries)]
        keys = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        queries = [len(one.queries) for one in attends]
        counts = [one.key_count for one in attends]
        tensors = (keys, _cumulative(queries), _cumulative(counts))
        if device.type == "cuda":  # from pinned memory a copy does not wait for the GPU
            tensors = tuple(x.pin_memory().to(device, non_blocking=True) for x in tensors)  # type: ignore[assignment]
        return cls(*tensors, max(queries), max(counts), reach.window)


def _cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
