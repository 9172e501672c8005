"""Pairs packed into rows of a token budget: a row holds as many pairs as fit.

Rows are made once, from a seeded order, and the sampler shuffles rows: every process gets whole
rows, and an epoch has a known number of steps.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.utils.data

from prefkit.data.batch.collators import Layout
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
        pairs: those pairs. (An item may hold more, such as values that lie on a disk.)
        budget: most tokens a row, as the layout counts them.
        layout: of the collator.
        seed: of the order in which pairs are dealt to rows; None = as they come.

    Attributes:
        rows: the items of each row.
        fill: mean share of the budget that is used.

    Raises:
        ConfigError: a pair that alone has more tokens than the budget.
    """

    def __init__(
        self,
        dataset: Any,
        pairs: Sequence[TokenizedPair],
        budget: int,
        layout: Layout,
        seed: int | None,
    ) -> None:
        self.dataset = dataset
        order = list(range(len(pairs)))
        if seed is not None:
            random.Random(seed).shuffle(order)
        rows = _deal(pairs, order, budget, layout)
        self.rows = [row.items for row in rows]
        self.fill = sum(row.tokens for row in rows) / (budget * len(rows)) if rows else 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Any]:
        return [self.dataset[i] for i in self.rows[index]]


@dataclass
class _Row:
    """A row that is being filled. Padded rows have as many tokens as their longest, times all."""

    padded: bool
    items: list[int] = field(default_factory=list)
    tokens: int = 0
    longest: int = 0

    def with_pair(self, tokens: int, longest: int) -> int:
        """Tokens of the row with one pair more."""
        if self.padded:
            return 2 * (len(self.items) + 1) * max(self.longest, longest)
        return self.tokens + tokens

    def add(self, index: int, tokens: int, longest: int) -> None:
        self.tokens = self.with_pair(tokens, longest)
        self.longest = max(self.longest, longest)
        self.items.append(index)


def _deal(
    pairs: Sequence[TokenizedPair], order: Sequence[int], budget: int, layout: Layout
) -> list[_Row]:
    """Best fit: each pair goes to the fullest open row that has room."""
    done: list[_Row] = []
    still: list[_Row] = []
    for index in order:
        pair = pairs[index]
        tokens = row_tokens([pair], layout)
        longest = max(len(pair.chosen.ids), len(pair.rejected.ids))
        _check_fits(pair, tokens, budget, layout)
        sizes = [row.with_pair(tokens, longest) for row in still]
        best = max((size for size in sizes if size <= budget), default=None)
        if best is not None:
            still[sizes.index(best)].add(index, tokens, longest)
            continue
        if len(still) == OPEN:  # the oldest has waited long enough
            done.append(still.pop(0))
        still.append(_Row(layout == "padded"))
        still[-1].add(index, tokens, longest)
    return done + still


def _check_fits(pair: TokenizedPair, tokens: int, budget: int, layout: Layout) -> None:
    if tokens > budget:
        raise ConfigError(
            f"{pair.source}: row {pair.row}: the pair has {tokens} tokens in layout {layout}, more "
            f"than tokens_per_batch = {budget}. Raise tokens_per_batch, or leave long rows out "
            "(max_length with too_long: skip)."
        )
