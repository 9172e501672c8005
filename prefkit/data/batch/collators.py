"""TokenizedPair → PairBatch: padded rows, or one row without padding that shares prefixes.

Whatever the layout, what is scored is a list of T tokens: `positions` tells from which position of
the row each is predicted. In a shared layout the last token of a prefix predicts the first token of
both sides, so its position occurs twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch

from prefkit.data.batch.stream import Stream, Tree
from prefkit.data.pair import PairBatch, TokenizedPair, TokenizedSide
from prefkit.errors import ConfigError

IndexedPair = tuple[int, TokenizedPair]
Layout = Literal["shared", "separate", "padded"]
Grown = tuple[list[Tree], list[np.ndarray], list[np.ndarray]]  # trees, their ids, sides' positions


class _Collator:
    """What collators of pairs and of single sequences share: the padding token, and the rows.

    Args:
        pad_token_id: fills padded rows' ends, so any valid id will do.
        pad_to_multiple_of: round the row length up to this many tokens.
        layout: see the collators.

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

    def _rounded(self, length: int) -> int:
        step = self.pad_to_multiple_of or 1
        return -(-length // step) * step

    def _padded_rows(self, sides: Sequence[TokenizedSide]) -> tuple[PairBatch, list[np.ndarray]]:
        """Each sequence a row of its own."""
        length = self._rounded(max(len(side.ids) for side in sides))
        ids = torch.full((len(sides), length), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, side in enumerate(sides):
            ids[row, : len(side.ids)] = torch.from_numpy(side.ids.astype(np.int64))
            mask[row, : len(side.ids)] = 1
        positions = [row * length + np.arange(len(side.ids)) for row, side in enumerate(sides)]
        real = sum(len(side.ids) for side in sides)
        return PairBatch(input_ids=ids, attention_mask=mask, num_tokens=real), positions

    def _one_row(self, grown: Iterable[Grown]) -> tuple[PairBatch, list[np.ndarray]]:
        """All trees in one row without padding."""
        trees, ids, positions = (list(chain(*parts)) for parts in zip(*grown, strict=True))
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
        return batch, positions


class PairCollator(_Collator):
    """Collates pairs into one of three layouts; what is scored is the same in each.

    Args:
        pad_token_id: fills padded rows' ends, so any valid id will do.
        pad_to_multiple_of: round the row length up to this many tokens.
        layout: "padded": row 2i is pair i's chosen sequence, row 2i + 1 its rejected one.
            "separate": one row, the sequences end to end. "shared": one row, each pair as its
            longest common token prefix, the rest of chosen, the rest of rejected. The last two need
            an attention that reads the batch's `stream` (`prefkit.model.attention.install`).

    Raises:
        ConfigError: no padding token.
    """

    def __call__(self, items: Sequence[IndexedPair | TokenizedPair]) -> PairBatch:
        """Collate B pairs, plain or with their dataset index (as `PairDataset` gives them)."""
        indexed = _indexed(items)
        pairs = [pair for _, pair in indexed]
        sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
        padded = self.layout == "padded"
        batch, positions = self._padded_rows(sides) if padded else self._one_row(self._grow(pairs))
        _score(batch, sides, positions)
        batch["pair_index"] = torch.tensor([index for index, _ in indexed], dtype=torch.int64)
        margins = [pair.margin for pair in pairs if pair.margin is not None]
        if len(margins) == len(pairs):
            batch["margins"] = torch.tensor(margins, dtype=torch.float32)
        return batch

    def _grow(self, pairs: Sequence[TokenizedPair]) -> Iterator[Grown]:
        start = 0
        for pair in pairs:
            both = (pair.chosen, pair.rejected)
            shared = pair.shared if self.layout == "shared" else 0
            grown = _shared_tree(both, shared, start) if shared else _own_trees(both, start)
            yield grown
            start = grown[0][-1].stop


class SolutionCollator(_Collator):
    """Collates single sequences; `segments` is i for sequence i of the batch.

    Args:
        pad_token_id, pad_to_multiple_of: see `PairCollator`.
        layout: "padded": a row each. Anything else: one row without padding, end to end.

    Raises:
        ConfigError: no padding token.
    """

    def __call__(self, items: Sequence[tuple[int, TokenizedSide] | TokenizedSide]) -> PairBatch:
        """Collate B sequences, plain or with their dataset index; `pair_index` holds that."""
        indexed = _indexed(items)
        sides = [side for _, side in indexed]
        padded = self.layout == "padded"
        batch, positions = (
            self._padded_rows(sides) if padded else self._one_row([_own_trees(sides, 0)])
        )
        _score(batch, sides, positions)
        batch["pair_index"] = torch.tensor([index for index, _ in indexed], dtype=torch.int64)
        return batch


def _indexed(items: Sequence[Any]) -> list[tuple[int, Any]]:
    return [item if isinstance(item, tuple) else (index, item) for index, item in enumerate(items)]


def _shared_tree(both: tuple[TokenizedSide, TokenizedSide], shared: int, start: int) -> Grown:
    tails = tuple(len(side.ids) - shared for side in both)
    tree = Tree(start, shared, tails)
    trunk = start + np.arange(shared)
    positions = [
        np.concatenate([trunk, first + np.arange(length)])
        for first, length in zip(tree.tail_starts(), tails, strict=True)
    ]
    return [tree], [both[0].ids, both[1].ids[shared:]], positions


def _own_trees(sides: Sequence[TokenizedSide], start: int) -> Grown:
    trees, positions = [], []
    for side in sides:
        trees.append(Tree(start, len(side.ids)))
        positions.append(start + np.arange(len(side.ids)))
        start += len(side.ids)
    return trees, [side.ids for side in sides], positions


def _score(
    batch: PairBatch, sides: Sequence[TokenizedSide], positions: Sequence[np.ndarray]
) -> None:
    """The scored tokens, side by side; a token's predictor is the position before it."""
    predicting, targets, segments, weights = [], [], [], []
    for segment, (side, own) in enumerate(zip(sides, positions, strict=True)):
        scored = side.scored[1:]
        predicting.append(own[:-1][scored])
        targets.append(side.ids[1:][scored])
        weights.append(side.weights[1:][scored])
        segments.append(np.full(int(scored.sum()), segment))
    batch["positions"] = torch.from_numpy(np.concatenate(predicting).astype(np.int64))
    batch["targets"] = torch.from_numpy(np.concatenate(targets).astype(np.int64))
    batch["segments"] = torch.from_numpy(np.concatenate(segments).astype(np.int64))
    batch["weights"] = torch.from_numpy(np.concatenate(weights).astype(np.float32))
    batch["num_scored"] = int((batch["weights"] != 0).sum())
    batch["text_tokens"] = sum(len(side.ids) for side in sides)
