"""Pair → TokenizedPair: two sequences (sequence.py) and how long their common prefix is.

The shared prefix of the two sides is found on the ids, not on the text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefkit.data.pair import Pair, TokenizedPair
from prefkit.data.render import Rendered, Renderer, TokenizeOptions
from prefkit.data.sequence import Encoded, TooLongError, encode, finish_side, try_render
from prefkit.errors import RowError

__all__ = ["TooLongError", "encode_pairs", "tokenize_pair", "tokenize_pairs"]


def tokenize_pair(
    pair: Pair,
    tokenizer: Any,
    options: TokenizeOptions | None = None,
    vocab_size: int | None = None,
) -> TokenizedPair:
    """Tokenise one pair.

    Args:
        tokenizer: a fast transformers tokenizer.
        options: see `TokenizeOptions`.
        vocab_size: rows of the model's embedding; ids beyond it are refused.

    Raises:
        RowError: a side has no scored token or too many tokens, weights belong to other tokens,
            both sides are the same ids, …
        PrefkitError: the tokenizer is not fast.
    """
    result = tokenize_pairs([pair], Renderer(tokenizer, options or TokenizeOptions()), vocab_size)[
        0
    ]
    if isinstance(result, RowError):
        raise result
    return result


def tokenize_pairs(
    pairs: Sequence[Pair], renderer: Renderer, vocab_size: int | None = None
) -> list[TokenizedPair | RowError]:
    """Tokenise many pairs with one call of the tokenizer; a bad pair becomes its RowError."""
    fronts = [try_render(pair, renderer) for pair in pairs]
    sound = [i for i, front in enumerate(fronts) if isinstance(front, Rendered)]
    encoded = encode_pairs([pairs[i] for i in sound], [fronts[i] for i in sound], renderer)
    results: list[TokenizedPair | RowError] = [
        front if isinstance(front, RowError) else _placeholder(pair)
        for pair, front in zip(pairs, fronts, strict=True)
    ]
    for i, sides in zip(sound, encoded, strict=True):
        try:
            results[i] = _finish_pair(pairs[i], fronts[i], sides, renderer, vocab_size)
        except RowError as error:
            results[i] = error
    return results


def encode_pairs(
    pairs: Sequence[Pair], fronts: Sequence[Any], renderer: Renderer
) -> list[tuple[Encoded, Encoded]]:
    """Both sequences of each pair as ids with character offsets; one call of the tokenizer."""
    twice = [front for front in fronts for _ in range(2)]
    texts = [side.text for pair in pairs for side in (pair.chosen, pair.rejected)]
    encoded = encode(twice, texts, renderer)
    return list(zip(encoded[::2], encoded[1::2], strict=True))


def _placeholder(pair: Pair) -> RowError:
    return RowError(pair.source, pair.row, "", "was not tokenised", "Report this as a bug.")


def _finish_pair(
    pair: Pair,
    front: Any,
    sides: tuple[Encoded, Encoded],
    renderer: Renderer,
    vocab_size: int | None,
) -> TokenizedPair:
    end_id = renderer.end_id(pair, front.is_chat) if pair.append_eos else None
    chosen, rejected = (
        finish_side(pair, name, side, encoded, end_id, renderer, vocab_size)
        for name, side, encoded in (
            ("chosen", pair.chosen, sides[0]),
            ("rejected", pair.rejected, sides[1]),
        )
    )
    shared = _common_length(chosen.ids, rejected.ids)
    if shared == len(chosen.ids) == len(rejected.ids):
        problem = "is the same tokens as 'chosen'"
        remedy = "Remove the row, or raise max_length if the difference was cut off, or use a "
        remedy += "tokenizer that tells the two apart."
        raise RowError(pair.source, pair.row, "rejected", problem, remedy)
    return TokenizedPair(
        chosen=chosen, rejected=rejected, shared=shared, source=pair.source, row=pair.row
    )


def _common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two id vectors."""
    shortest = min(len(a), len(b))
    differ = np.flatnonzero(a[:shortest] != b[:shortest])
    return int(differ[0]) if len(differ) else shortest
