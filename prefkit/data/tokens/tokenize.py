"""Pair → TokenizedPair: two sequences (sequence.py) and how long their common prefix is.

The shared prefix of the two sequences is found on the ids, not on the text.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from prefkit.data.pair import Pair, Rendered, TokenizedPair, common_prefix
from prefkit.data.text.render import Renderer, TokenizeOptions
from prefkit.data.tokens.encode import Encoded, encode
from prefkit.data.tokens.sequence import Texts, finish_side, try_write
from prefkit.errors import EqualError, RowError

SIDES = ("chosen", "rejected")


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
        RowError: a response has no scored token or too many tokens, weights belong to other tokens,
            both sequences are the same ids, …
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
    """Tokenise many pairs together; a bad pair becomes its RowError."""
    texts = write_pairs(pairs, renderer)
    encoded = iter(encode_pairs([one for one in texts if isinstance(one, Texts)], renderer))
    results: list[TokenizedPair | RowError] = []
    for pair, written in zip(pairs, texts, strict=True):
        if isinstance(written, RowError):
            results.append(written)
            continue
        try:
            results.append(_finish_pair(pair, written, next(encoded), renderer, vocab_size))
        except RowError as error:
            results.append(error)
    return results


def write_pairs(pairs: Sequence[Pair], renderer: Renderer) -> list[Texts | RowError]:
    """Each pair as text: its context and both responses, as the chat template writes them."""
    return [
        try_write(pair, {"chosen": pair.chosen, "rejected": pair.rejected}, renderer)
        for pair in pairs
    ]


def encode_pairs(texts: Sequence[Texts], renderer: Renderer) -> list[tuple[Encoded, Encoded]]:
    """Both sequences of each pair, chosen first, as ids with character offsets."""
    fronts = [one.front for one in texts for _ in SIDES]
    responses = [one.sides[name] for one in texts for name in SIDES]
    encoded = encode(fronts, responses, renderer)
    return list(zip(encoded[::2], encoded[1::2], strict=True))


def _finish_pair(
    pair: Pair,
    texts: Texts,
    encoded: tuple[Encoded, Encoded],
    renderer: Renderer,
    vocab_size: int | None,
) -> TokenizedPair:
    chosen, rejected = (
        finish_side(pair, name, texts.sides[name], one, renderer, vocab_size)
        for name, one in zip(SIDES, encoded, strict=True)
    )
    shared = common_prefix(chosen.ids, rejected.ids)
    if shared == len(chosen.ids) == len(rejected.ids):
        problem = "is the same tokens as 'chosen'"
        remedy = "Remove the row, or raise max_length if the difference was cut off, or use a "
        remedy += "tokenizer that tells the two apart."
        raise EqualError(pair.source, pair.row, "rejected", problem, remedy)
    return TokenizedPair(
        chosen=chosen,
        rejected=rejected,
        shared=shared,
        source=pair.source,
        row=pair.row,
        margin=pair.margin,
        question=_question(texts.front),
    )


def _question(front: Rendered) -> int:
    """A number of the text that sampling would show: the same in every process and run."""
    shown = front.prompt[: front.generation] if front.is_chat else front.prompt
    return int.from_bytes(hashlib.sha256(shown.encode()).digest()[:8], "little")
