"""Which pairs stay together when rows are filled, and how many tokens they have there.

In trees all pairs of a question are one bundle: each token once. A question that is larger than a
row is split: its pairs, in the order of their ids, fill one bundle after another, each with the
path to its pairs once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prefkit.data.batch.collators import Layout, by_question
from prefkit.data.batch.tree import Sizes
from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError

GroupBy = Literal["question", "none"]


@dataclass(frozen=True)
class Bundle:
    """Pairs that stay together.

    Attributes:
        items: their places in the dataset.
        tokens: that the model reads of them in a row of their own.
        longest: of their sequences.
    """

    items: list[int]
    tokens: int
    longest: int


def row_tokens(pairs: Sequence[TokenizedPair], layout: Layout) -> int:
    """Tokens that the model reads for these pairs in one row (padding included)."""
    if layout == "tree":
        return sum(_sizes([pairs[i] for i in group]).total for group in by_question(pairs))
    sides = [len(side.ids) for pair in pairs for side in (pair.chosen, pair.rejected)]
    if layout == "padded":
        return len(sides) * max(sides)
    return sum(sides) - (sum(pair.shared for pair in pairs) if layout == "shared" else 0)


def bundles_of(
    pairs: Sequence[TokenizedPair],
    layout: Layout,
    budget: int | None,
    group_by: GroupBy,
    whole_rows: bool,
) -> list[Bundle]:
    """See `prefkit.data.batch.packing.pack`; without a budget nothing is split or refused.

    Raises:
        ConfigError: what may not be split has more tokens than the budget.
    """
    atoms = _rows_of_data(pairs) if whole_rows else [[item] for item in range(len(pairs))]
    if layout != "tree" or group_by == "none":
        return [_whole(pairs, items, layout, budget) for items in atoms]
    questions = by_question([pairs[items[0]] for items in atoms])
    bundles: list[Bundle] = []
    for question in questions:
        bundles += _of_question(pairs, [atoms[place] for place in question], budget)
    return bundles


def _rows_of_data(pairs: Sequence[TokenizedPair]) -> list[list[int]]:
    rows: dict[tuple[str, int], list[int]] = {}
    for item, pair in enumerate(pairs):
        rows.setdefault((pair.source, pair.row), []).append(item)
    return list(rows.values())


def _whole(
    pairs: Sequence[TokenizedPair], items: list[int], layout: Layout, budget: int | None
) -> Bundle:
    some = [pairs[item] for item in items]
    tokens = row_tokens(some, layout)
    _check_fits(some[0], tokens, budget, layout)
    return Bundle(items, tokens, max(map(_longest, some)))


def _of_question(
    pairs: Sequence[TokenizedPair], atoms: list[list[int]], budget: int | None
) -> list[Bundle]:
    """The pairs of a question, cut where the next would pass the budget."""
    sizes = _sizes([pairs[item] for atom in atoms for item in atom])
    if budget is None or sizes.total <= budget:
        items = [item for atom in atoms for item in atom]
        return [Bundle(items, sizes.total, max(_longest(pairs[item]) for item in items))]
    spans, start = [], 0  # the sequences of each atom
    for atom in atoms:
        spans.append(range(start, start + 2 * len(atom)))
        start += 2 * len(atom)
    bundles: list[Bundle] = []
    open_: Bundle | None = None
    there: list[int] = []
    # Neighbours in the order of ids share most: a bundle is a part of the tree and the path to it.
    for place in sorted(range(len(atoms)), key=lambda p: sizes.ranks[spans[p].start]):
        atom = atoms[place]
        longest = max(_longest(pairs[item]) for item in atom)
        more, ranks = sizes.added(there, spans[place])
        if open_ is None or open_.tokens + more > budget:
            more, ranks = sizes.added([], spans[place])
            _check_fits(pairs[atom[0]], more, budget, "tree")
            open_ = Bundle(list(atom), more, longest)
            bundles.append(open_)
        else:
            open_ = Bundle(open_.items + atom, open_.tokens + more, max(open_.longest, longest))
            bundles[-1] = open_
        there = ranks
    return bundles


def _sizes(pairs: Sequence[TokenizedPair]) -> Sizes:
    return Sizes([side.ids for pair in pairs for side in (pair.chosen, pair.rejected)])


def _longest(pair: TokenizedPair) -> int:
    return max(len(pair.chosen.ids), len(pair.rejected.ids))


def _check_fits(pair: TokenizedPair, tokens: int, budget: int | None, layout: Layout) -> None:
    if budget is not None and tokens > budget:
        raise ConfigError(
            f"{pair.source}: row {pair.row}: the pair has {tokens} tokens in layout {layout}, more "
            f"than tokens_per_batch = {budget}. Raise tokens_per_batch, or leave long rows out "
            "(max_length with too_long: skip)."
        )
