"""TokenizedPair → PairBatch: padded rows, or one row without padding that reads a prefix once.

Whatever the layout, what is scored is the same: `positions` tells from which position of the row
each scored token is predicted. The last token of a prefix predicts the first token of every
branch, so its position occurs once for each. A token that several pairs score stands once among
positions and targets; `token_index` then says which token each pair uses.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from prefkit.data.batch.stream import Node, Stream
from prefkit.data.batch.tree import Grown, apart, grow
from prefkit.data.groups import group_numbers
from prefkit.data.pair import PairBatch, TokenizedPair, TokenizedSide
from prefkit.errors import ConfigError

IndexedPair = tuple[int, TokenizedPair]
Layout = Literal["tree", "shared", "separate", "padded"]


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

    def _one_row(self, pieces: Sequence[Grown]) -> tuple[PairBatch, list[np.ndarray]]:
        """All trees in one row without padding, and the places of the sequences of each piece."""
        nodes: list[Node] = []
        places: list[np.ndarray] = []
        count = 0
        for piece in pieces:
            first = len(nodes)
            nodes += [Node(n, first + above if above >= 0 else -1) for n, above in piece.nodes]
            places += [count + own for own in piece.places]
            count += len(piece.ids)
        ids = [piece.ids for piece in pieces]
        if filler := self._rounded(count) - count:
            nodes.append(Node(filler))
            ids.append(np.full(filler, self.pad_token_id, dtype=np.int32))
        stream = Stream(tuple(nodes))
        row = torch.from_numpy(np.concatenate(ids).astype(np.int64))
        batch = PairBatch(
            input_ids=row[None],
            position_ids=stream.position_ids()[None],
            stream=stream,
            num_tokens=count,
        )
        return batch, places


class PairCollator(_Collator):
    """Collates pairs into one of four layouts; what is scored is the same in each.

    Args:
        pad_token_id: fills padded rows' ends, so any valid id will do.
        pad_to_multiple_of: round the row length up to this many tokens.
        layout: "padded": row 2i is pair i's chosen sequence, row 2i + 1 its rejected one.
            "separate": one row, the sequences end to end. "shared": one row, each pair as its
            longest common token prefix, and the rest of both sides. "tree": one row, all pairs of a
            question (`TokenizedPair.question`) as one tree of all their common prefixes. The last
            three need an attention that reads the batch's `stream`
            (`prefkit.model.attention.install`).
        one_sided: in trees, a token that is scored on chosen and on rejected sides is computed for
            each: what a loss with a KL wants, which gives the two different gradients. False: once
            for both.

    Raises:
        ConfigError: no padding token.
    """

    def __init__(
        self,
        pad_token_id: int | None,
        pad_to_multiple_of: int | None = None,
        layout: Layout = "padded",
        one_sided: bool = True,
    ) -> None:
        super().__init__(pad_token_id, pad_to_multiple_of, layout)
        self.one_sided = one_sided

    def __call__(self, items: Sequence[IndexedPair | TokenizedPair]) -> PairBatch:
        """Collate B pairs, plain or with their dataset index (as `PairDataset` gives them)."""
        indexed = _indexed(items)
        pairs = [pair for _, pair in indexed]
        sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
        padded = self.layout == "padded"
        batch, places = self._padded_rows(sides) if padded else self._rows_of_trees(pairs, sides)
        _score(batch, sides, places)
        if self.layout == "tree" and len(pairs) > 1:  # one pair by itself has quicker ways
            _score_once(batch, self.one_sided)
        batch["pair_index"] = torch.tensor([index for index, _ in indexed], dtype=torch.int64)
        groups = group_numbers(pairs)
        batch["groups"], batch["num_groups"] = torch.from_numpy(groups), int(groups.max()) + 1
        there = [[bool(side.scored.any()) for side in (p.chosen, p.rejected)] for p in pairs]
        batch["sides_there"] = (sum(one[0] for one in there), sum(one[1] for one in there))
        if mismatched := [side for pair in pairs for side in pair.mismatched]:
            single = SolutionCollator(self.pad_token_id, self.pad_to_multiple_of, self.layout)
            batch["mismatched"] = single(mismatched)
        margins = [pair.margin for pair in pairs if pair.margin is not None]
        if len(margins) == len(pairs):
            batch["margins"] = torch.tensor(margins, dtype=torch.float32)
        return batch

    def _rows_of_trees(
        self, pairs: Sequence[TokenizedPair], sides: Sequence[TokenizedSide]
    ) -> tuple[PairBatch, list[np.ndarray]]:
        if self.layout == "separate":
            return self._one_row([apart([side.ids for side in sides])])
        groups = [[pair] for pair in range(len(pairs))]
        if self.layout == "tree":
            groups = by_question(pairs)
        order = [2 * pair + side for group in groups for pair in group for side in (0, 1)]
        pieces = [
            grow([sides[2 * pair + side].ids for pair in group for side in (0, 1)])
            for group in groups
        ]
        batch, places = self._one_row(pieces)
        back = np.argsort(order)
        return batch, [places[index] for index in back]


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
            self._padded_rows(sides) if padded else self._one_row([apart([x.ids for x in sides])])
        )
        _score(batch, sides, positions)
        batch["pair_index"] = torch.tensor([index for index, _ in indexed], dtype=torch.int64)
        return batch


def _indexed(items: Sequence[Any]) -> list[tuple[int, Any]]:
    return [item if isinstance(item, tuple) else (index, item) for index, item in enumerate(items)]


def by_question(pairs: Sequence[TokenizedPair]) -> list[list[int]]:
    """The pairs' places by question, in the order of their first pairs; None is like no other."""
    groups: dict[Any, list[int]] = {}
    for place, pair in enumerate(pairs):
        key = ("alone", place) if pair.question is None else pair.question
        groups.setdefault(key, []).append(place)
    return list(groups.values())


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


def _score_once(batch: PairBatch, one_sided: bool) -> None:
    """Scored tokens that are the same (position, target) once, where there are any.

    With `one_sided` the same (position, target, kind of side), see `prefkit.loss.shared_tokens`.
    """
    positions, targets = batch["positions"].numpy(), batch["targets"].numpy()
    kinds = batch["segments"].numpy() % 2 if one_sided else 0
    keys = (positions << 32 | targets) << 1 | kinds
    unique, first, index = np.unique(keys, return_index=True, return_inverse=True)
    if len(unique) == len(keys):
        return
    used = np.zeros(len(unique), dtype=bool)
    used[index[batch["weights"].numpy() != 0]] = True
    batch["positions"], batch["targets"] = batch["positions"][first], batch["targets"][first]
    batch["token_index"] = torch.from_numpy(index.astype(np.int64))
    batch["one_sided"] = one_sided
    batch["num_scored"] = int(used.sum())
