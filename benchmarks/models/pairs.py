"""The pairs that every miniature is compared on: two in a batch, four sequences.

The first is a long common prefix, tokens that both sides begin with, and two tails; the second has
a short prompt and one long tail. The longest sequence has 66 tokens: four windows and two more. In
the shared layout both pairs lie in one row, so that a layer that looks beyond its own sequence
shows.
"""

import numpy as np

from prefkit.data.pair import TokenizedPair, TokenizedSide

_IDS = (3, 250)  # drawn from here; 250 and 251 are kept for the first token that differs
_SHAPES = ((44, 4, (18, 12)), (5, 0, (60, 9)))  # prompt, common scored tokens, tails
LONGEST = max(prompt + common + max(tails) for prompt, common, tails in _SHAPES)


def example_pairs() -> list[TokenizedPair]:
    """Two pairs of token ids below 252, with a random weight in [0.2, 1) for every scored token."""
    draw = np.random.default_rng(0)
    return [_pair(draw, row, *shape) for row, shape in enumerate(_SHAPES)]


def _pair(
    draw: np.random.Generator, row: int, prompt: int, common: int, tails: tuple[int, int]
) -> TokenizedPair:
    front = draw.integers(*_IDS, prompt + common)
    chosen, rejected = (
        _side(draw, np.concatenate([front, [250 + k], draw.integers(*_IDS, tail - 1)]), prompt)
        for k, tail in enumerate(tails)
    )
    return TokenizedPair(
        chosen=chosen,
        rejected=rejected,
        shared=prompt + common,
        source="miniature",
        row=row,
    )


def _side(draw: np.random.Generator, ids: np.ndarray, prompt: int) -> TokenizedSide:
    scored = np.arange(len(ids)) >= prompt
    weights = draw.uniform(0.2, 1.0, len(ids)).astype(np.float32) * scored
    return TokenizedSide(ids=ids.astype(np.int32), scored=scored, weights=weights, eos=False)
