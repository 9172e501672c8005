"""How long the data are: tokens of pairs, and of the batches that a run makes of them.

A pair is its longest common prefix P and the rest of each sequence, C and R. In the separate layout
it is 2P + C + R tokens, with the prefix shared P + C + R.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from prefkit.errors import ConfigError
from prefkit.plan.inputs.setting import Setting


class PairLength(NamedTuple):
    """Tokens of a pair."""

    prefix: int
    chosen: int
    rejected: int
    scored: int

    @property
    def separate(self) -> int:
        """Tokens of both sequences."""
        return 2 * self.prefix + self.chosen + self.rejected

    @property
    def shared(self) -> int:
        """Tokens with the prefix read once."""
        return self.prefix + self.chosen + self.rejected

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return self.prefix + max(self.chosen, self.rejected)

    def attention(self, shared: bool) -> float:
        """Pairs of query and key that a causal attention over this pair computes."""
        sides = [(self.prefix + tail) ** 2 / 2 for tail in (self.chosen, self.rejected)]
        return sum(sides) - (self.prefix**2 / 2 if shared else 0)


class Load(NamedTuple):
    """One batch of a device.

    Attributes:
        rows: padded rows, 0 = one row without padding.
        length: tokens of each row.
        scored: tokens that enter the loss.
        pairs: pairs.
        attention: pairs of query and key.
    """

    rows: int
    length: float
    scored: float
    pairs: float
    attention: float

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


@dataclass(frozen=True)
class Lengths:
    """The lengths of a data set.

    Attributes:
        pairs: the lengths that are known: of every pair, of a sample, or the one given.
        total: pairs of the whole data set, or None where only a length is known.
        source: in words.
    """

    pairs: tuple[PairLength, ...]
    total: int | None
    source: str

    @property
    def sharing(self) -> float:
        """(2P + C + R) / (P + C + R) over all pairs."""
        return sum(p.separate for p in self.pairs) / max(1, sum(p.shared for p in self.pairs))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(pair.longest for pair in self.pairs)


def given_lengths(text: str) -> Lengths:
    """Of `--lengths prefix,chosen,rejected`.

    Raises:
        ConfigError: not three whole numbers, or no token after the prefix.
    """
    parts = text.replace(" ", "").split(",")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ConfigError(
            f"lengths is {text!r}; give the tokens of prefix, chosen and rejected, such as "
            "--lengths 16000,8000,8000."
        )
    prefix, chosen, rejected = map(int, parts)
    if not (chosen and rejected):
        raise ConfigError("lengths: a response without a token has nothing to score.")
    pair = PairLength(prefix, chosen, rejected, chosen + rejected)
    return Lengths((pair,), None, f"pairs of {prefix} + {chosen} + {rejected} tokens, as given")


def data_lengths(dataset: Any) -> Lengths:
    """Of tokenised pairs (a `PairDataset`)."""
    pairs = []
    for pair in dataset.pairs:
        sides = (pair.chosen, pair.rejected)
        chosen, rejected = (len(side.ids) - pair.shared for side in sides)
        scored = sum(int(np.count_nonzero(side.weights)) for side in sides)
        pairs.append(PairLength(pair.shared, chosen, rejected, scored))
    count = len(pairs)
    return Lengths(tuple(pairs), count, f"{count} pairs of the data")


def batches(lengths: Lengths, setting: Setting, layout: str) -> tuple[Load, Load]:
    """The heaviest and the mean batch of a device.

    Args:
        layout: "shared", "separate" or "padded".

    Raises:
        ConfigError: a pair does not fit tokens_per_batch.
    """
    if setting.tokens_per_batch is not None:
        groups = _packed(lengths, setting, layout)
    else:
        groups = _by_count(lengths, setting)
    loads = [_load(group, layout, setting.pad_to) for group in groups]
    heaviest = max(loads, key=lambda load: load.tokens)
    if setting.tokens_per_batch is not None:
        return heaviest, Load(heaviest.rows, *_means(loads))
    everything = [_load([pair], layout, setting.pad_to) for pair in lengths.pairs]
    mean = _means(everything)
    sums = [setting.pairs * number for number in mean]
    if layout == "padded":  # rows are as long as the longest of the batch: take half-way for it
        length = (mean[0] + heaviest.length) / 2 if setting.pairs > 1 else mean[0]
        return heaviest, Load(heaviest.rows, length, *sums[1:])
    return heaviest, Load(0, *sums)


def _means(loads: Sequence[Load]) -> list[float]:
    return [float(number) for number in np.mean([load[1:] for load in loads], axis=0)]


def _by_count(lengths: Lengths, setting: Setting) -> list[list[PairLength]]:
    """The batch that a shuffle may make of the longest pairs."""
    ordered = sorted(lengths.pairs, key=lambda pair: pair.separate, reverse=True)
    group = ordered[: setting.pairs]
    return [group + [ordered[0]] * (setting.pairs - len(group))]


def _packed(lengths: Lengths, setting: Setting, layout: str) -> list[list[PairLength]]:
    """Rows filled in the order of the data by next fit: a pair that has no room opens a new row.

    A run packs by best fit over many open rows, so it has somewhat fewer and fuller rows.
    """
    budget = setting.tokens_per_batch
    assert budget is not None
    if len(lengths.pairs) == 1:
        room = budget // _tokens(lengths.pairs, layout)
        groups = [list(lengths.pairs) * max(1, room)]
    else:
        groups = [[]]
        for pair in lengths.pairs:
            if groups[-1] and _tokens([*groups[-1], pair], layout) > budget:
                groups.append([])
            groups[-1].append(pair)
    for group in groups:
        if (tokens := _tokens(group, layout)) > budget:
            raise ConfigError(
                f"tokens_per_batch is {budget}, and a pair of the data has {tokens} tokens in "
                f"layout {layout}. Raise it, or leave long rows out (max_length with too_long: "
                "skip)."
            )
    return groups


def _tokens(pairs: Sequence[PairLength], layout: str) -> int:
    if layout == "padded":
        return 2 * len(pairs) * max(pair.longest for pair in pairs)
    return sum(pair.shared if layout == "shared" else pair.separate for pair in pairs)


def _load(pairs: Sequence[PairLength], layout: str, pad_to: int) -> Load:
    scored = sum(pair.scored for pair in pairs)
    if layout == "padded":
        rows, length = 2 * len(pairs), max(pair.longest for pair in pairs)
        length = -(-length // pad_to) * pad_to
        return Load(rows, length, scored, len(pairs), rows * length**2 / 2)
    length = -(-_tokens(pairs, layout) // pad_to) * pad_to
    area = sum(pair.attention(layout == "shared") for pair in pairs)
    return Load(0, length, scored, len(pairs), area)
