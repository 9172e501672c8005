"""How long the data are: tokenised pairs, those of a run or one of given lengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prefkit.data.batch.bundles import row_tokens
from prefkit.data.pair import TokenizedPair, TokenizedSide
from prefkit.errors import ConfigError


@dataclass(frozen=True)
class Lengths:
    """The lengths of a data set.

    Attributes:
        make: gives the pairs that are known: all of the data, or one of the given lengths. Called
            when they are first needed: what no run could hold is refused before.
        longest: tokens of the longest sequence.
        total: pairs of the whole data set, or None where only a length is known.
        source: in words.
    """

    make: Callable[[], Sequence[TokenizedPair]]
    longest: int
    total: int | None
    source: str

    @cached_property
    def pairs(self) -> Sequence[TokenizedPair]:
        """The pairs that are known."""
        return self.make()

    @cached_property
    def sharing(self) -> float:
        """(2P + C + R) / (P + C + R) over all pairs: P is a pair's common prefix, C and R the rest
        of its sides."""
        return row_tokens(self.pairs, "separate") / max(1, row_tokens(self.pairs, "shared"))


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
    words = f"pairs of {prefix} + {chosen} + {rejected} tokens, as given"
    longest = prefix + max(chosen, rejected)
    return Lengths(lambda: [_pair(prefix, chosen, rejected)], longest, None, words)


def data_lengths(dataset: Any) -> Lengths:
    """Of tokenised pairs (a `PairDataset`)."""
    pairs = dataset.pairs
    longest = max(len(side.ids) for pair in pairs for side in (pair.chosen, pair.rejected))
    return Lengths(lambda: pairs, longest, len(pairs), f"{len(pairs)} pairs of the data")


def _pair(prefix: int, chosen: int, rejected: int) -> TokenizedPair:
    """A pair of these lengths that shares nothing with others; every response token is scored."""
    sides = []
    for token, length in ((1, chosen), (2, rejected)):
        ids = np.repeat(np.array([0, token], dtype=np.int32), [prefix, length])
        sides.append(
            TokenizedSide(ids=ids, scored=ids > 0, weights=(ids > 0).astype(np.float32), eos=False)
        )
    return TokenizedPair(
        chosen=sides[0], rejected=sides[1], shared=prefix, source="lengths", row=0, question=None
    )
