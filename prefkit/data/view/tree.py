"""The pairs of a question as a tree: each token once, with the sides that score it.

sequences → nodes (`prefkit.data.batch.tree`) → pieces: what the same sides score of a node
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from prefkit.data.batch.bundles import row_tokens
from prefkit.data.batch.tree import Grown, grow
from prefkit.data.pair import TokenizedPair
from prefkit.data.view.tokens import TokenView

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Use:
    """What a side scores of a piece.

    Attributes:
        pair: the pair's place among all pairs.
        side: "chosen" or "rejected".
        weights: of the piece's tokens for that side.
    """

    pair: int
    side: str
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Piece:
    """Tokens of a node that follow each other and are scored by the same sides.

    Attributes:
        ids, texts: of the tokens (see `TokenView`).
        ending: whether the last of them is an appended end-of-sequence token.
        uses: of the sides that score them; () = context.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    ending: bool
    uses: tuple[Use, ...]


@dataclass
class NodeView:
    """A run of tokens that continues its parent's.

    Attributes:
        parent: its place among the nodes; −1 = a root.
        before: tokens from the root to this node.
        pieces: of its tokens, in order.
        ends: (pair, side) of the sequences that end with this node.
    """

    parent: int
    before: int
    pieces: list[Piece] = field(default_factory=list)
    ends: list[tuple[int, str]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return sum(len(piece.ids) for piece in self.pieces)


@dataclass(frozen=True)
class QuestionView:
    """Pairs of a question.

    Attributes:
        places: of the pairs among all pairs.
        nodes: in depth-first order, as they lie in a row.
        separate, shared, tree: tokens of the pairs in these layouts.
    """

    places: tuple[int, ...]
    nodes: list[NodeView]
    separate: int
    shared: int
    tree: int


def view_question(
    places: Sequence[int],
    pairs: Sequence[TokenizedPair],
    views: Sequence[tuple[list[TokenView], list[TokenView]]],
    name_of: Callable[[int], str],
) -> QuestionView:
    """The tree of some pairs of one question.

    Args:
        places: of the pairs among all pairs.
        pairs: the pairs.
        views: of `view_pair`, for each of them.
        name_of: the tokenizer's name of a token, for one whose characters lie in several branches.
    """
    sequences = [side.ids for pair in pairs for side in (pair.chosen, pair.rejected)]
    seen = [side for sides in views for side in sides]
    owners = [(place, side) for place in places for side in SIDES]
    grown = grow(sequences)
    nodes = []
    for (length, parent), through in zip(grown.nodes, _passing(grown), strict=True):
        before = through[0][1]
        inside = [(owners[index], seen[index][before : before + length]) for index, _ in through]
        node = NodeView(parent, before, _pieces(inside, name_of))
        node.ends = [owners[i] for i, _ in through if before + length == len(sequences[i])]
        nodes.append(node)
    separate, shared = (row_tokens(pairs, how) for how in ("separate", "shared"))
    return QuestionView(tuple(places), nodes, separate, shared, len(grown.ids))


def _passing(grown: Grown) -> list[list[tuple[int, int]]]:
    """For each node, the sequences that go through it, and how many of their tokens come before."""
    starts = np.cumsum([0, *(node.length for node in grown.nodes)])
    through: list[list[tuple[int, int]]] = [[] for _ in grown.nodes]
    for index, places in enumerate(grown.places):
        own = np.searchsorted(starts, places, side="right") - 1
        firsts = np.unique(own, return_index=True)
        for node, before in zip(*firsts, strict=True):
            through[node].append((index, int(before)))
    return through


def _pieces(
    inside: Sequence[tuple[tuple[int, str], list[TokenView]]], name_of: Callable[[int], str]
) -> list[Piece]:
    """A node cut where other sides begin to score.

    Args:
        inside: for each sequence, whose it is and its tokens in this node.
    """

    def scoring(k: int) -> tuple[int, ...]:
        return tuple(i for i, (_, tokens) in enumerate(inside) if tokens[k].segment >= 0)

    pieces = []
    for who, group in groupby(range(len(inside[0][1])), scoring):
        run = list(group)
        uses = tuple(Use(*inside[i][0], tuple(inside[i][1][k].weight for k in run)) for i in who)
        views = [inside[0][1][k] for k in run]
        texts = tuple(_text(k, inside, name_of) for k in run)
        ids = tuple(view.id for view in views)
        pieces.append(Piece(ids, texts, views[-1].part == "end", uses))
    return pieces


def _text(
    k: int,
    inside: Sequence[tuple[tuple[int, str], list[TokenView]]],
    name_of: Callable[[int], str],
) -> str:
    """A token's characters; its name where branches part within a character, or before it ends."""
    texts = {tokens[k].text for _, tokens in inside}
    token = inside[0][1][k]
    if len(texts) > 1 or (k == 0 and not token.text):
        return name_of(token.id)
    return token.text
