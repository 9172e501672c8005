"""Sequences that begin alike, as trees in which each token stands once.

    sequences → sorted by their ids → common prefixes of neighbours → a radix tree → one row

The tree of several sequences is read off their sorted order: what a sequence shares with any before
it, it shares with its neighbour. Of the children of a node the one with the longest path comes
first, so that this path is one run of the row and one causal attention.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prefkit.data.batch.stream import Node
from prefkit.data.pair import common_prefix


@dataclass(frozen=True)
class Grown:
    """Some sequences in one piece of a row.

    Attributes:
        nodes: of the piece's trees, as in `Stream`; parents are numbered within the piece.
        ids: (n,) int32, the tokens.
        places: for each sequence, in the order given, where its tokens lie in `ids` (int64).
    """

    nodes: list[Node]
    ids: np.ndarray
    places: list[np.ndarray]


def grow(sequences: Sequence[np.ndarray]) -> Grown:
    """The trees of some sequences: as many as they have different first tokens.

    Args:
        sequences: (L,) int32 ids each, at least one of at least one token.
    """
    branches, ends = _branches(sequences)
    _put_longest_first(branches)
    nodes: list[Node] = []
    ids: list[np.ndarray] = []
    starts: dict[int, int] = {}  # by id of a branch: where its tokens begin
    place = 0
    waiting = [(child, -1) for child in reversed(branches[0].children)]
    while waiting:
        branch, parent = waiting.pop()
        starts[id(branch)] = place
        nodes.append(Node(branch.stop - branch.start, parent))
        ids.append(sequences[branch.witness][branch.start : branch.stop])
        place += branch.stop - branch.start
        waiting += [(child, len(nodes) - 1) for child in reversed(branch.children)]
    places = []
    for end in ends:
        runs = []
        while end.above is not None:
            start = starts[id(end)]
            runs.append(np.arange(start, start + end.stop - end.start))
            end = end.above
        places.append(np.concatenate(runs[::-1]) if runs else np.empty(0, dtype=np.int64))
    return Grown(nodes, np.concatenate(ids), places)


def apart(sequences: Sequence[np.ndarray]) -> Grown:
    """Each sequence as a tree of its own, sharing nothing."""
    starts = np.cumsum([0, *(len(one) for one in sequences)])
    places = [start + np.arange(len(one)) for start, one in zip(starts, sequences, strict=False)]
    return Grown([Node(len(one)) for one in sequences], np.concatenate(sequences), places)


@dataclass(eq=False)
class _Branch:
    """A node while the tree grows: tokens start … stop − 1 of the sequences that go through it."""

    start: int
    stop: int
    witness: int  # one of these sequences
    above: "_Branch | None"
    children: list["_Branch"] = field(default_factory=list)
    longest: int = 0  # tokens from the root to the end of its longest path


def _branches(sequences: Sequence[np.ndarray]) -> tuple[list[_Branch], list[_Branch]]:
    """All nodes, the empty root first, each before those below it; and where sequences end."""
    order = _sorted(sequences)
    root = _Branch(0, 0, order[0], None)
    made, path = [root], [root]
    ends: list[_Branch] = [root] * len(sequences)
    before = None
    for index in order:
        ids = sequences[index]
        shared = 0 if before is None else common_prefix(before, ids)
        below = None
        while path[-1].stop > shared:
            below = path.pop()
        top = path[-1]
        if top.stop < shared:  # the neighbours part within a node: cut it there
            assert below is not None
            middle = _Branch(top.stop, shared, below.witness, top)
            top.children[top.children.index(below)] = middle
            middle.children.append(below)
            below.start, below.above = shared, middle
            made.append(middle)
            path.append(middle)
        if len(ids) > shared:
            leaf = _Branch(shared, len(ids), index, path[-1])
            path[-1].children.append(leaf)
            made.append(leaf)
            path.append(leaf)
        ends[index] = path[-1]
        before = ids
    return made, ends


def _put_longest_first(branches: list[_Branch]) -> None:
    # Whatever lies below a node ends later than the node: the deepest first.
    for branch in sorted(branches, key=lambda one: -one.stop):
        branch.longest = max(branch.stop, branch.longest)
        if branch.above is not None:
            branch.above.longest = max(branch.above.longest, branch.longest)
        branch.children.sort(key=lambda child: -child.longest)


def _sorted(sequences: Sequence[np.ndarray]) -> list[int]:
    """Indices of the sequences in the order of their ids."""
    keys = [np.asarray(one, dtype=">i4").tobytes() for one in sequences]
    return sorted(range(len(sequences)), key=keys.__getitem__)


class Sizes:
    """How many tokens the trees of some of these sequences have, counted as they are added.

    Args:
        sequences: all that may be added.

    Attributes:
        order: their indices in the order of their ids, in which neighbours share most.
        ranks: the place of each in that order; equal sequences have places of their own.
    """

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        self.order = _sorted(sequences)
        self.ranks = [0] * len(self.order)
        for rank, index in enumerate(self.order):
            self.ranks[index] = rank
        self._lengths = [len(sequences[index]) for index in self.order]
        pairs = zip(self.order, self.order[1:], strict=False)
        shared = (common_prefix(sequences[a], sequences[b]) for a, b in pairs)
        self._shared = np.array([0, *shared])  # of each with the one before it in the order
        lengths = np.array(self._lengths)
        repeats = (self._shared[1:] == lengths[1:]) & (lengths[1:] == lengths[:-1])
        self._kinds = np.concatenate([[0], np.cumsum(~repeats)])  # equal sequences are of one

    @property
    def distinct(self) -> int:
        """How many different sequences there are."""
        return int(self._kinds[-1]) + 1

    @property
    def total(self) -> int:
        """Tokens of the trees of all sequences."""
        return int(sum(self._lengths) - self._shared.sum())

    def places(self, indices: Sequence[int]) -> list[int]:
        """The places of some sequences in the order of these alone; equal ones have one."""
        kinds = [int(self._kinds[self.ranks[index]]) for index in indices]
        place = {kind: number for number, kind in enumerate(sorted(set(kinds)))}
        return [place[kind] for kind in kinds]

    def added(self, there: list[int], indices: Sequence[int]) -> tuple[int, list[int]]:
        """Tokens that some sequences add to those that are there.

        Args:
            there: ranks of those that are there, sorted.
            indices: of the sequences.

        Returns:
            Their tokens, and the ranks with them.
        """
        more, ranks = 0, list(there)
        for index in indices:
            rank = self.ranks[index]
            place = bisect_left(ranks, rank)
            if place < len(ranks) and ranks[place] == rank:
                continue
            left = self._between(ranks[place - 1], rank) if place else 0
            right = self._between(rank, ranks[place]) if place < len(ranks) else 0
            more += self._lengths[rank] - max(left, right)
            ranks.insert(place, rank)
        return more, ranks

    def _between(self, low: int, high: int) -> int:
        return int(self._shared[low + 1 : high + 1].min())
