"""What a device reads in one forward pass: the batches of a run, counted as it makes them.

Rows of a budget are packed by the run's own `pack`, in its order; what a batch holds is read off
the run's own `PairCollator`. Nothing of the arithmetic of layouts is repeated here.
"""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prefkit.data.batch.bundles import row_tokens, sizes_of
from prefkit.data.batch.collators import Layout, PairCollator, by_question
from prefkit.data.batch.packing import pack, rows_of_data
from prefkit.data.batch.stream import Stream
from prefkit.data.batch.tree import Sizes
from prefkit.data.pair import PairBatch, TokenizedPair
from prefkit.plan.inputs.lengths import Lengths
from prefkit.plan.inputs.setting import Setting

_PAD = 0  # nothing of a batch is read but its lengths


class Load(NamedTuple):
    """One batch of a device.

    Attributes:
        rows: padded rows, 0 = one row without padding.
        length: tokens of each row.
        scored: tokens that enter the loss, each counted once however many pairs use it.
        pairs: pairs.
        attention: pairs of query and key that a causal attention over the sequences computes.
        full: tokens of both sequences of all pairs, common prefixes counted for each.
        by_token: some scored tokens serve several sides, so the head's passes go by tokens
            (`prefkit.loss.shared_tokens`).
    """

    rows: float
    length: float
    scored: float
    pairs: float
    attention: float
    full: float
    by_token: bool = False

    @classmethod
    def of(cls, batch: PairBatch) -> "Load":
        """Of a batch as the collator makes it."""
        rows, length = batch["input_ids"].shape
        stream: Stream | None = batch.get("stream")
        return cls(
            rows=0 if stream else rows,
            length=length,
            scored=batch["num_scored"],
            pairs=len(batch["pair_index"]),
            attention=_area(stream) if stream else rows * _causal(length),
            full=batch["text_tokens"],
            by_token="token_index" in batch,
        )

    @property
    def tokens(self) -> float:
        """Tokens that the model reads, padding included."""
        return max(self.rows, 1) * self.length

    def worst_piece(self, size: int) -> tuple[float, float]:
        """(tokens, scored) of the process that has the most, where `size` share the row.

        Pieces are equal and consecutive, and what is scored lies at the ends of sequences: one
        piece may hold nothing but scored tokens, while others hold none.
        """
        if size == 1:
            return self.tokens, self.scored
        tokens = math.ceil(self.tokens / size)
        return tokens, min(self.scored, tokens)


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def _area(stream: Stream) -> int:
    """Pairs of query and key: a node's tokens see the path before it, and themselves causally."""
    nodes = zip(stream.nodes, stream.depths, strict=True)
    return sum(node.length * depth + _causal(node.length) for node, depth in nodes)


def batches(lengths: Lengths, setting: Setting, layout: Layout) -> tuple[Load, Load]:
    """The heaviest and the mean batch of a device, over an epoch.

    Without `tokens_per_batch` the mean is that of one shuffled order, and the heaviest batch the
    one that a shuffle may make of the pairs that add most tokens to each other.

    Raises:
        ConfigError: a pair does not fit tokens_per_batch.
    """
    pairs, collate = lengths.pairs, PairCollator(_PAD, setting.multiple, layout, setting.needs_kl)

    def load(places: Sequence[int]) -> Load:
        return Load.of(collate([pairs[place] for place in places]))

    if setting.tokens_per_batch is not None:
        loads = [load(row) for row in _packed(lengths, setting, layout)]
        return max(loads, key=_weight), _mean(loads, len(pairs) / len(loads))
    if setting.needs_groups and lengths.total is not None:  # rows of data are drawn, not pairs
        return _of_rows(lengths, setting, layout, load)
    count = setting.pairs
    if len(pairs) == 1:
        several = load([0] * count)
        return several, several
    order = list(range(len(pairs)))
    random.Random(setting.seed).shuffle(order)
    loads = [load(order[start : start + count]) for start in range(0, len(order), count)]
    heaviest = max([load(_heaviest(pairs, count, layout)), *loads], key=_weight)
    return heaviest, _mean(loads, count)


def _of_rows(
    lengths: Lengths, setting: Setting, layout: Layout, load: Callable[[Sequence[int]], Load]
) -> tuple[Load, Load]:
    """The same where a batch is so many rows of data, each with all its pairs."""
    rows = rows_of_data(lengths.pairs, lengths.pairs, layout).rows
    heaviest = sorted(rows, key=lambda row: -row_tokens([lengths.pairs[i] for i in row], layout))
    random.Random(setting.seed).shuffle(rows)
    count = setting.pairs
    drawn = [rows[start : start + count] for start in range(0, len(rows), count)]
    loads = [load([i for row in some for i in row]) for some in (heaviest[:count], *drawn)]
    return max(loads, key=_weight), _mean(loads[1:], len(lengths.pairs) / len(drawn))


def _weight(load: Load) -> tuple[float, float]:
    return load.tokens, load.scored


def _mean(loads: Sequence[Load], pairs: float) -> Load:
    """The mean of batches, scaled to so many pairs: the last batch of an epoch may have fewer."""
    share = pairs / sum(load.pairs for load in loads)
    rows = 2 * pairs if loads[0].rows else 0
    tokens, scored, area, full = (
        share * sum(numbers)
        for numbers in zip(*((x.tokens, x.scored, x.attention, x.full) for x in loads), strict=True)
    )
    by_token = any(load.by_token for load in loads)
    return Load(rows, tokens / max(rows, 1), scored, pairs, area, full, by_token)


def _packed(lengths: Lengths, setting: Setting, layout: Layout) -> list[list[int]]:
    """The rows of a run; of a single given pair, as many in a row as fit."""
    budget, pairs = setting.tokens_per_batch, lengths.pairs
    assert budget is not None
    budget = budget // setting.multiple * setting.multiple
    if lengths.total is None:
        count = max(1, budget // row_tokens(pairs, layout))
        packed = pack(pairs, [*pairs] * count, budget, layout, None)
        return [[0] * len(row) for row in packed.rows]
    whole = setting.needs_groups
    return pack(pairs, pairs, budget, layout, setting.seed, setting.group_by, whole).rows


def _heaviest(pairs: Sequence[TokenizedPair], count: int, layout: Layout) -> list[int]:
    """The pairs that together have most tokens, as near as taking one after the other gets.

    In trees a pair adds what those of its question that were taken before do not have. That only
    shrinks as more are taken, so what was found for a pair before is a bound: it is counted again
    only when it comes first.
    """
    alone = [row_tokens([pair], layout) for pair in pairs]
    if layout != "tree":
        return sorted(range(len(pairs)), key=lambda place: -alone[place])[:count]
    groups = by_question(pairs)
    within = {place: (group, k) for group in groups for k, place in enumerate(group)}
    trees: dict[int, tuple[Sizes, list[int]]] = {}  # by a group's first pair: what was taken of it
    waiting = [(-tokens, place) for place, tokens in enumerate(alone)]
    heapq.heapify(waiting)
    taken: list[int] = []
    while waiting and len(taken) < count:
        bound, place = heapq.heappop(waiting)
        group, k = within[place]
        if group[0] not in trees:
            trees[group[0]] = sizes_of([pairs[i] for i in group]), []
        sizes, there = trees[group[0]]
        added, ranks = sizes.added(there, range(2 * k, 2 * k + 2))
        if added < -bound:
            heapq.heappush(waiting, (-added, place))
            continue
        trees[group[0]] = sizes, ranks
        taken.append(place)
    return taken
