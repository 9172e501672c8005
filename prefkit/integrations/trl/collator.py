"""TRL's collator of pairs, with the weights of their tokens and the row that the model reads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from prefkit.data.batch.collators import Layout, PairCollator
from prefkit.data.pair import TokenizedPair, TokenizedSide, common_prefix
from prefkit.integrations.trl.batch import ROW, WEIGHTS
from prefkit.integrations.trl.rows import COLUMNS, SIDES


@dataclass
class Collator(DataCollatorForPreference):
    """What TRL's collator makes, and beside it what prefkit reads.

    Args:
        weighted: batches also have `token_weights` (2B, L) float32: 0 for prompt and padding, 1
            where a row brings no weights.
        layout: "padded", or that of `prefkit_row`, one row without padding of the same pairs.
    """

    weighted: bool = False
    layout: Layout = "padded"

    @classmethod
    def instead_of(cls, collator: DataCollatorForPreference, **ours: Any) -> "Collator":
        """One with the options of TRL's collator, and ours."""
        return cls(**{**vars(collator), **ours})

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """B rows of a dataset that TRL has prepared → a batch."""
        batch = super().torch_call(examples)
        if not self.weighted and self.layout == "padded":
            return batch
        sides = [
            [self._side(row, side, column) for side, column in zip(SIDES, COLUMNS, strict=True)]
            for row in examples
        ]
        if self.weighted:
            rows = [torch.from_numpy(both[side].weights) for side in (0, 1) for both in sides]
            batch[WEIGHTS] = pad(rows, 0, "right", self.pad_to_multiple_of)
        if self.layout != "padded":
            collate = PairCollator(self.pad_token_id, self.pad_to_multiple_of, self.layout)
            batch[ROW] = collate([_pair(index, *both) for index, both in enumerate(sides)])
        return batch

    def _side(self, example: dict[str, Any], side: str, column: str) -> TokenizedSide:
        """One sequence, cut as TRL cuts it."""
        prompt, completion = example["prompt_ids"], example[f"{side}_ids"]
        weights = example.get(column) or [1.0] * len(completion)
        cut = slice(self.max_length)
        if self.max_length is not None and self.truncation_mode == "keep_end":
            cut = slice(-self.max_length, None)
        scored = np.array([False] * len(prompt) + [True] * len(completion), dtype=bool)
        return TokenizedSide(
            ids=np.array(prompt + completion, dtype=np.int32)[cut],
            scored=scored[cut],
            weights=np.array([0.0] * len(prompt) + weights, dtype=np.float32)[cut],
            eos=False,  # nobody asks
        )


def _pair(index: int, chosen: TokenizedSide, rejected: TokenizedSide) -> TokenizedPair:
    shared = common_prefix(chosen.ids, rejected.ids)
    return TokenizedPair(chosen=chosen, rejected=rejected, shared=shared, source="", row=index)
