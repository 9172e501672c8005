"""Pairs packed into rows of a token budget: a row holds as many as fit.

Rows are made once, from a seeded order, and the sampler shuffles rows: every process gets whole
rows, and an epoch has a known number of steps. What is dealt to rows is a bundle of pairs that stay
together: a pair alone, the pairs of one row of data, or all pairs of a question
(`prefkit.data.batch.bundles`).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.utils.data

from prefkit.data.batch.bundles import Bundle, GroupBy, bundles_of
from prefkit.data.batch.collators import Layout
from prefkit.data.pair import TokenizedPair

OPEN = 64  # rows that still take pairs at any time: enough to fill them, few enough to stay random


class PackedDataset(torch.utils.data.Dataset):
    """Rows of pairs: item i is the list of the dataset's items that share row i.

    Args:
        dataset: items that hold one pair each.
        rows: the items of each row.
        tokens: that the model reads of all rows, padding of padded rows included.
        budget: most tokens a row; None = rows have no common size.

    Attributes:
        fill: mean share of the budget that is used; 1 without one.
    """

    def __init__(
        self, dataset: Any, rows: list[list[int]], tokens: int, budget: int | None = None
    ) -> None:
        self.dataset, self.rows, self.tokens, self.budget = dataset, rows, tokens, budget
        self.fill = tokens / (budget * len(rows)) if budget and rows else 1.0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Any]:
        return [self.dataset[i] for i in self.rows[index]]


def pack(
    dataset: Any,
    pairs: Sequence[TokenizedPair],
    budget: int,
    layout: Layout,
    seed: int | None,
    group_by: GroupBy = "question",
    whole_rows: bool = False,
) -> PackedDataset:
    """Deals pairs to rows of a budget.

    Args:
        dataset: items that hold one pair each.
        pairs: those pairs. (An item may hold more, such as values that lie on a disk.)
        budget: most tokens a row, as the layout counts them.
        layout: of the collator.
        seed: of the order in which bundles are dealt to rows; None = as they come.
        group_by: in trees, whether the pairs of a question stay together.
        whole_rows: the pairs of one row of data stay together (a chosen response beside several
            rejected ones).

    Raises:
        ConfigError: a pair, or a row of data, that alone has more tokens than the budget.
    """
    order = bundles_of(pairs, layout, budget, group_by, whole_rows)
    if seed is not None:
        random.Random(seed).shuffle(order)
    rows = _deal(order, budget, layout)
    return PackedDataset(dataset, [r.items for r in rows], sum(r.tokens for r in rows), budget)


def rows_of_data(dataset: Any, pairs: Sequence[TokenizedPair], layout: Layout) -> PackedDataset:
    """A row for each row of data, whatever its number of pairs; other arguments as in `pack`."""
    bundles = bundles_of(pairs, layout, None, "none", whole_rows=True)
    return PackedDataset(dataset, [b.items for b in bundles], sum(b.tokens for b in bundles))


@dataclass
class _Row:
    """A row that is being filled. Padded rows have as many tokens as their longest, times all."""

    padded: bool
    items: list[int] = field(default_factory=list)
    tokens: int = 0
    longest: int = 0

    def with_bundle(self, bundle: Bundle) -> int:
        """Tokens of the row with one bundle more."""
        if self.padded:
            sequences = 2 * (len(self.items) + len(bundle.items))
            return sequences * max(self.longest, bundle.longest)
        return self.tokens + bundle.tokens

    def add(self, bundle: Bundle) -> None:
        self.tokens = self.with_bundle(bundle)
        self.longest = max(self.longest, bundle.longest)
        self.items += bundle.items


def _deal(bundles: Sequence[Bundle], budget: int, layout: Layout) -> list[_Row]:
    """Best fit: each bundle goes to the fullest open row that has room."""
    done: list[_Row] = []
    still: list[_Row] = []
    for bundle in bundles:
        sizes = [row.with_bundle(bundle) for row in still]
        best = max((size for size in sizes if size <= budget), default=None)
        if best is not None:
            still[sizes.index(best)].add(bundle)
            continue
        if len(still) == OPEN:  # the oldest has waited long enough
            done.append(still.pop(0))
        still.append(_Row(layout == "padded"))
        still[-1].add(bundle)
    return done + still
