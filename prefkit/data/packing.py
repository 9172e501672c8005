"""Pairs packed into rows of a token budget: a row holds as many pairs as fit.

Rows are made once, from a seeded order, and the sampler shuffles rows: every process gets whole
rows, and an epoch has a known number of steps.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch.utils.data

from prefkit.data.batch import Layout
from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError

OPEN = 64  # rows that still take pairs at any time: enough to fill them, few enough to stay random


def row_tokens(pairs: Sequence[TokenizedPair], layout: Layout) -> int:
    """Tokens that the model reads for these pairs in one row (padding included)."""
    sides = [len(side.ids) for pair in pairs for side in (pair.chosen, pair.rejected)]
    if layout == "padded":
        return len(sides) * max(sides)
    return sum(sides) - (sum(pair.shared for pair in pairs) if layout == "shared" else 0)


class PackedDataset(torch.utils.data.Dataset):
    """Rows of pairs: item i is the list of the dataset's items that share row i.

    Args:
        dataset: items that hold one pair each.
        pair_of: the `TokenizedPair` of an item.
        budget: most tokens a row, as the layout counts them.
        layout: of the collator.
        seed: of the order in which pairs are dealt to rows; None = as they come.

    Raises:
        ConfigError: a pair that alone has more tokens than the budget.
    """

    def __init__(
        self,
        dataset: Any,
        pair_of: Callable[[Any], TokenizedPair],
        budget: int,
        layout: Layout,
        seed: int | None,
    ) -> None:
        self.dataset = dataset
        pairs = [pair_of(dataset[i]) for i in range(len(dataset))]
        order = list(range(len(pairs)))
        if seed is not None:
            random.Random(seed).shuffle(order)
        self.rows = _deal(pairs, order, budget, layout)
        self.pairs = len(pairs)
        filled = sum(row_tokens([pairs[i] for i in row], layout) for row in self.rows)
        self.fill = filled / (budget * len(self.rows)) if self.rows else 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Any]:
        return [self.dataset[i] for i in self.rows[index]]


def _deal(
    pairs: Sequence[TokenizedPair], order: Sequence[int], budget: int, layout: Layout
) -> list[list[int]]:
    """Best fit: each pair goes to the fullest open row that has room."""
    done: list[list[int]] = []
    still: list[list[int]] = []
    for index in order:
        _check_fits(pairs[index], budget, layout)
        fits = [
            (tokens, place)
            for place, row in enumerate(still)
            if (tokens := row_tokens([pairs[i] for i in (*row, index)], layout)) <= budget
        ]
        if fits:
            still[max(fits)[1]].append(index)
            continue
        if len(still) == OPEN:  # the oldest has waited long enough
            done.append(still.pop(0))
        still.append([index])
    return done + still


def _check_fits(pair: TokenizedPair, budget: int, layout: Layout) -> None:
    if (tokens := row_tokens([pair], layout)) > budget:
        raise ConfigError(
            f"{pair.source}: row {pair.row}: the pair has {tokens} tokens in layout {layout}, more "
            f"than tokens_per_batch = {budget}. Raise tokens_per_batch, or leave long rows out "
            "(max_length with too_long: skip)."
        )
