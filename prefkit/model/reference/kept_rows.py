"""Which row of a cache belongs to which scored token of which pair.

    by pair      the scored tokens of pair after pair, chosen first: a token of two pairs lies twice
    by question  the tokens of question after question, each (position, target) of its tree once

A cache says in its manifest which of the two it is, and is read as that, whatever the layout of the
run that reads it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from prefkit.data.batch.collators import PairCollator, by_question
from prefkit.data.pair import TokenizedPair
from prefkit.model.reference.fingerprints import fingerprint_pairs

UNIT = 8192  # rows of a unit, as far as pairs allow: what a shard holds at least, and a kill loses


@dataclass(frozen=True)
class KeptRows:
    """Where the scored tokens of pairs lie in a cache.

    Attributes:
        units: pairs that are kept together, in the order of the cache.
        firsts: (units + 1,) int64, the first row of each unit, and the number of all rows.
        counts: (pairs, 2) int64, scored tokens of each side.
        local: by pair, (t,) int32 rows from the first of its unit on, chosen first; None = the
            tokens of each pair follow each other, and each is a unit.
    """

    units: tuple[tuple[int, ...], ...]
    firsts: np.ndarray
    counts: np.ndarray
    local: tuple[np.ndarray, ...] | None = None

    @cached_property
    def _unit_of(self) -> np.ndarray:
        found = np.empty(len(self.counts), dtype=np.int64)
        for unit, pairs in enumerate(self.units):
            found[list(pairs)] = unit
        return found

    def rows(self, pair: int) -> np.ndarray:
        """(t,) int64 rows of the scored tokens of a pair, chosen first.

        Raises:
            IndexError: there is no such pair.
        """
        if not 0 <= pair < len(self.counts):
            raise IndexError(f"pair {pair} of {len(self.counts)}")
        if self.local is None:
            return np.arange(self.firsts[pair], self.firsts[pair + 1])
        return self.local[pair] + self.firsts[self._unit_of[pair]]

    def fingerprint(self, pairs: Sequence[TokenizedPair], units: range | None = None) -> str:
        """A hash of the pairs of some units, and of how they lie together; None = of all.

        Args:
            pairs: all pairs.
            units: numbers of units.
        """
        if units is None and self.local is None:
            return fingerprint_pairs(pairs)
        chosen = [self.units[unit] for unit in (units or range(len(self.units)))]
        plain = fingerprint_pairs([pairs[i] for unit in chosen for i in unit])
        if self.local is None:
            return plain
        text = f"{plain} by question {[len(unit) for unit in chosen]}"
        if units is None:
            text += f" {self.units}"
        return hashlib.sha256(text.encode()).hexdigest()


def kept_by_pair(pairs: Sequence[TokenizedPair]) -> KeptRows:
    """A row for each scored token of each pair."""
    counts = _counts(pairs)
    firsts = np.concatenate([[0], counts.sum(1).cumsum()])
    return KeptRows(tuple((i,) for i in range(len(counts))), firsts, counts)


def kept_by_question(pairs: Sequence[TokenizedPair]) -> KeptRows:
    """A row for each scored token of each question, or of its parts where it has very many."""
    local: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(pairs)
    counts, collate, sizes = _counts(pairs), PairCollator(0, layout="tree", one_sided=False), []
    units: list[list[int]] = []
    waiting = by_question(pairs)[::-1]
    while waiting:
        unit = waiting.pop()
        batch = collate([pairs[i] for i in unit])
        tokens = len(batch["targets"])
        if tokens > UNIT and len(unit) > 1:
            waiting += [unit[len(unit) // 2 :], unit[: len(unit) // 2]]
            continue
        units.append(unit)
        sizes.append(tokens)
        index = batch.get("token_index", torch.arange(tokens)).numpy().astype(np.int32)
        for i, rows in zip(unit, np.split(index, counts[unit].sum(1).cumsum()[:-1]), strict=True):
            local[i] = rows
    firsts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return KeptRows(tuple(map(tuple, units)), firsts, counts, tuple(local))


def _counts(pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """Scored tokens that can be predicted: the first token of a sequence cannot."""
    sides = [[int(s.scored[1:].sum()) for s in (pair.chosen, pair.rejected)] for pair in pairs]
    return np.array(sides, dtype=np.int64).reshape(-1, 2)
