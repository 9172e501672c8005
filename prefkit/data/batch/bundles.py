"""Which pairs stay together when rows are filled, and how many tokens they have there.

In trees all pairs of a question are one bundle: each token once. A question that is larger than a
row is split: its pairs fill one bundle after another, neighbours first, each with the path to its
pairs once more.
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
        return sum(sizes_of([pairs[i] for i in group]).total for group in by_question(pairs))
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
    _check_fits(some, tokens, budget, layout)
    return Bundle(items, tokens, max(map(_longest, some)))


def _of_question(
    pairs: Sequence[TokenizedPair], atoms: list[list[int]], budget: int | None
) -> list[Bundle]:
    """The pairs of a question, cut where the next would pass the budget."""
    sizes = sizes_of([pairs[item] for atom in atoms for item in atom])
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
    for place in _in_blocks(sizes, [(span[0], span[1]) for span in spans], budget):
        atom = atoms[place]
        longest = max(_longest(pairs[item]) for item in atom)
        more, ranks = sizes.added(there, spans[place])
        if open_ is None or open_.tokens + more > budget:
            more, ranks = sizes.added([], spans[place])
            _check_fits([pairs[item] for item in atom], more, budget, "tree")
            open_ = Bundle(list(atom), more, longest)
            bundles.append(open_)
        else:
            open_ = Bundle(open_.items + atom, open_.tokens + more, max(open_.longest, longest))
            bundles[-1] = open_
        there = ranks
    return bundles


def _in_blocks(sizes: Sizes, sides: list[tuple[int, int]], budget: int) -> list[int]:
    """An order of pairs in which those that follow each other share most.

    Neighbours in the order of ids share prefixes. All pairs of many chosen and many rejected
    sequences come in blocks, as many of one as of the other, and not in strips of one chosen beside
    every rejected, which would read the latter again for each.

    Args:
        sizes: of all sequences.
        sides: the chosen and the rejected sequence of each pair.
        budget: tokens of a bundle.
    """
    block = max(1, budget * sizes.distinct // (2 * sizes.total))
    chosen, rejected = (sizes.places([pair[k] for pair in sides]) for k in (0, 1))
    places = list(zip(chosen, rejected, strict=True))
    return sorted(
        range(len(sides)), key=lambda p: (places[p][0] // block, places[p][1] // block, places[p])
    )


def sizes_of(pairs: Sequence[TokenizedPair]) -> Sizes:
    """Of the sequences of some pairs, chosen and rejected of each in turn."""
    return Sizes([side.ids for pair in pairs for side in (pair.chosen, pair.rejected)])


def _longest(pair: TokenizedPair) -> int:
    return max(len(pair.chosen.ids), len(pair.rejected.ids))


def _check_fits(
    pairs: Sequence[TokenizedPair], tokens: int, budget: int | None, layout: Layout
) -> None:
    if budget is None or tokens <= budget:
        return
    what, instead = "the pair has", "leave long rows out (max_length with too_long: skip)"
    if len(pairs) > 1:
        what = f"its {len(pairs)} pairs, which stay together, have"
        instead = "give fewer rejected responses a row"
    raise ConfigError(
        f"{pairs[0].source}: row {pairs[0].row}: {what} {tokens} tokens in layout {layout}, more "
        f"than tokens_per_batch = {budget}. Raise tokens_per_batch, or {instead}."
    )
