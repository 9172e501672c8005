"""TokenizedPair → PairBatch: padded rows, or one row without padding that shares prefixes.

Whatever the layout, what is scored is a list of T tokens: `rows` tells from which place of the row
each is predicted. In a shared layout the last token of a prefix predicts the first token of both
sides, so its place occurs twice.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from prefkit.data.pair import PairBatch, TokenizedPair, TokenizedSide
from prefkit.data.stream import Stream, Tree
from prefkit.errors import ConfigError

IndexedPair = tuple[int, TokenizedPair]
Layout = Literal["shared", "separate", "padded"]


class PairCollator:
    """Collates pairs into one of three layouts; what is scored is the same in each.

    Args:
        pad_token_id: fills padded rows' ends, so any valid id will do.
        pad_to_multiple_of: round the row length up to this many tokens.
        layout: "padded": row 2i is pair i's chosen side, row 2i + 1 its rejected one.
            "separate": one row, the sides end to end. "shared": one row, each pair as its longest
            common token prefix, the rest of chosen, the rest of rejected. The last two need an
            attention that reads the batch's `stream` (`prefkit.model.attention`).

    Raises:
        ConfigError: no padding token.
    """

    def __init__(
        self,
        pad_token_id: int | None,
        pad_to_multiple_of: int | None = None,
        layout: Layout = "padded",
    ) -> None:
        if pad_token_id is None:
            raise ConfigError(
                "The tokenizer has no padding token. Set tokenizer.pad_token, for example to its "
                "eos_token."
            )
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of
        self.layout: Layout = layout

    def __call__(self, items: Sequence[IndexedPair | TokenizedPair]) -> PairBatch:
        """Collate B pairs, plain or with their dataset index (as `PairDataset` gives them)."""
        indexed = [
            item if isinstance(item, tuple) else (place, item) for place, item in enumerate(items)
        ]
        pairs = [pair for _, pair in indexed]
        place = self._pad if self.layout == "padded" else self._pack
        batch, places = place(pairs)
        _score(batch, pairs, places)
        batch["pair_index"] = torch.tensor([index for index, _ in indexed], dtype=torch.int64)
        return batch

    def _rounded(self, length: int) -> int:
        step = self.pad_to_multiple_of or 1
        return -(-length // step) * step

    def _pad(self, pairs: Sequence[TokenizedPair]) -> tuple[PairBatch, list[np.ndarray]]:
        sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
        length = self._rounded(max(len(side.ids) for side in sides))
        ids = torch.full((len(sides), length), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, side in enumerate(sides):
            ids[row, : len(side.ids)] = torch.from_numpy(side.ids.astype(np.int64))
            mask[row, : len(side.ids)] = 1
        places = [row * length + np.arange(len(side.ids)) for row, side in enumerate(sides)]
        real = sum(len(side.ids) for side in sides)
        return PairBatch(input_ids=ids, attention_mask=mask, num_tokens=real), places

    def _pack(self, pairs: Sequence[TokenizedPair]) -> tuple[PairBatch, list[np.ndarray]]:
        ids: list[np.ndarray] = []
        places: list[np.ndarray] = []
        trees: list[Tree] = []
        count = 0
        for pair in pairs:
            both = (pair.chosen, pair.rejected)
            shared = pair.shared if self.layout == "shared" else 0
            grown = _shared_tree(both, shared, count) if shared else _own_trees(both, count)
            trees += grown[0]
            ids += grown[1]
            places += grown[2]
            count = trees[-1].stop
        if filler := self._rounded(count) - count:
            trees.append(Tree(count, filler))
            ids.append(np.full(filler, self.pad_token_id, dtype=np.int32))
        stream = Stream(tuple(trees))
        row = torch.from_numpy(np.concatenate(ids).astype(np.int64))
        batch = PairBatch(
            input_ids=row[None],
            position_ids=stream.position_ids()[None],
            stream=stream,
            num_tokens=count,
        )
        return batch, places


Grown = tuple[list[Tree], list[np.ndarray], list[np.ndarray]]  # trees, their ids, sides' places


def _shared_tree(both: tuple[TokenizedSide, TokenizedSide], shared: int, start: int) -> Grown:
    tails = tuple(len(side.ids) - shared for side in both)
    tree = Tree(start, shared, tails)
    trunk = start + np.arange(shared)
    places = [
        np.concatenate([trunk, first + np.arange(length)])
        for first, length in zip(tree.tail_starts(), tails, strict=True)
    ]
    return [tree], [both[0].ids, both[1].ids[shared:]], places


def _own_trees(both: tuple[TokenizedSide, TokenizedSide], start: int) -> Grown:
    trees, places = [], []
    for side in both:
        trees.append(Tree(start, len(side.ids)))
        places.append(start + np.arange(len(side.ids)))
        start += len(side.ids)
    return trees, [side.ids for side in both], places


def _score(batch: PairBatch, pairs: Sequence[TokenizedPair], places: Sequence[np.ndarray]) -> None:
    """The scored tokens, pair by pair, chosen first; a token's predictor is the place before it."""
    rows, targets, segments, weights = [], [], [], []
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    for segment, (side, place) in enumerate(zip(sides, places, strict=True)):
        scored = side.scored[1:]
        rows.append(place[:-1][scored])
        targets.append(side.ids[1:][scored])
        weights.append(side.weights[1:][scored])
        segments.append(np.full(int(scored.sum()), segment))
    batch["rows"] = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    batch["targets"] = torch.from_numpy(np.concatenate(targets).astype(np.int64))
    batch["segments"] = torch.from_numpy(np.concatenate(segments).astype(np.int64))
    batch["weights"] = torch.from_numpy(np.concatenate(weights).astype(np.float32))
    batch["num_scored"] = int((batch["weights"] != 0).sum())
    batch["text_tokens"] = sum(len(side.ids) for side in sides)
