"""TokenizedPair → PairBatch: right-padded rows, everything aligned with the predicting position."""

from collections.abc import Sequence

import numpy as np
import torch

from prefkit.data.pair import PairBatch, TokenizedPair, TokenizedSide
from prefkit.errors import ConfigError

IGNORE_INDEX = -100
IndexedPair = tuple[int, TokenizedPair]


class PairCollator:
    """Collates pairs into padded rows: row 2i is pair i's chosen side, row 2i + 1 its rejected.

    Args:
        pad_token_id: fills the rows' ends (attention_mask 0 there, so any valid id will do).
        pad_to_multiple_of: round the row length up to this many tokens.

    Raises:
        ConfigError: no padding token.
    """

    def __init__(self, pad_token_id: int | None, pad_to_multiple_of: int | None = None) -> None:
        if pad_token_id is None:
            raise ConfigError(
                "The tokenizer has no padding token. Set tokenizer.pad_token, for example to its "
                "eos_token."
            )
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, items: Sequence[IndexedPair | TokenizedPair]) -> PairBatch:
        """Collate B pairs, plain or with their dataset index (as `PairDataset` gives them)."""
        indexed = [
            item if isinstance(item, tuple) else (place, item) for place, item in enumerate(items)
        ]
        sides = [side for _, pair in indexed for side in (pair.chosen, pair.rejected)]
        length = self._row_length(sides)
        shape = (len(sides), length)
        batch = PairBatch(
            input_ids=torch.full(shape, self.pad_token_id, dtype=torch.int64),
            attention_mask=torch.zeros(shape, dtype=torch.int64),
            targets=torch.full(shape, IGNORE_INDEX, dtype=torch.int64),
            segments=torch.full(shape, -1, dtype=torch.int64),
            weights=torch.zeros(shape, dtype=torch.float32),
            pair_index=torch.tensor([index for index, _ in indexed], dtype=torch.int64),
        )
        for row, side in enumerate(sides):
            _fill_row(batch, row, side)
        batch["rows"] = (batch["targets"].reshape(-1) != IGNORE_INDEX).nonzero().squeeze(1)
        batch["num_scored"] = int((batch["weights"].reshape(-1)[batch["rows"]] != 0).sum())
        return batch

    def _row_length(self, sides: list[TokenizedSide]) -> int:
        longest = max(len(side.ids) for side in sides)
        step = self.pad_to_multiple_of or 1
        return -(-longest // step) * step


def _fill_row(batch: PairBatch, row: int, side: TokenizedSide) -> None:
    """Entry j of targets, segments and weights speaks of token j + 1: the shift happens here."""
    count = len(side.ids)
    ids = torch.from_numpy(side.ids.astype(np.int64))
    scored = torch.from_numpy(side.scored[1:])
    batch["input_ids"][row, :count] = ids
    batch["attention_mask"][row, :count] = 1
    batch["targets"][row, : count - 1][scored] = ids[1:][scored]
    batch["segments"][row, : count - 1][scored] = row
    batch["weights"][row, : count - 1] = torch.from_numpy(side.weights[1:])
