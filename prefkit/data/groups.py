"""Which pairs are one choice: several rejected responses of a row, beside its chosen one."""

from collections.abc import Sequence

import numpy as np

from prefkit.data.pair import TokenizedPair


def group_numbers(pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """(P,) int64, the number of each pair's group, from 0 in the order of their first pairs.

    Pairs of one row with the same chosen sequence are a group, wherever they stand among the
    others; a row of the TDPO layout may hold several. Any other pair is a group of its own. It is
    what link "plackett_luce" takes as `groups`.
    """
    numbers: dict[tuple[str, int, bytes], int] = {}
    keys = [(pair.source, pair.row, pair.chosen.ids.tobytes()) for pair in pairs]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
