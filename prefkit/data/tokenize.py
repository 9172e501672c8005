"""Pair → TokenizedPair: boundary-safe; a token's flag and weight follow from its characters.

Prompt, prefix and response are tokenised as *one* string, the way the model will meet it. A token
is scored when it holds a character of the response that is not masked; so a token that straddles
the boundary counts. Pieces are never tokenised apart and glued together: for most tokenizers that
is another sequence. The shared prefix of the two sides is found on the ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefkit.data.pair import Pair, Side, TokenizedPair, TokenizedSide
from prefkit.data.render import Rendered, Renderer, TokenizeOptions
from prefkit.data.token_weights import Tokens, bind_weights, end_is_implied
from prefkit.errors import RowError

_WEIGH = "Give one weight above 0, or remove the row."


class TooLongError(RowError):
    """A row longer than max_length that may not be cut."""


@dataclass(frozen=True)
class Encoded:
    """One tokenised sequence with its characters, before flags and weights.

    Attributes:
        text: prompt + prefix + response.
        ids: (n,) int64, special tokens before the text included, the end token not.
        start, end: (n,) int64, the characters `[start, end)` of `text` that each token holds.
        response: the character where the response begins.
        gap: the first character that no token holds (see `_first_gap`), -1 = none.
    """

    text: str
    ids: np.ndarray
    start: np.ndarray
    end: np.ndarray
    response: int
    gap: int


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
    fronts = [_try_render(pair, renderer) for pair in pairs]
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
    texts = [
        front.prompt + front.prefix + side.text
        for pair, front in zip(pairs, fronts, strict=True)
        for side in (pair.chosen, pair.rejected)
    ]
    if not texts:
        return []
    batch = renderer.exact(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        padding=False,
        truncation=False,
        verbose=False,
    )
    encoded = []
    for i, (text, ids, offsets) in enumerate(
        zip(texts, batch["input_ids"], batch["offset_mapping"], strict=True)
    ):
        front = fronts[i // 2]
        bos = [] if front.is_chat or ids[: len(renderer.bos)] == renderer.bos else renderer.bos
        encoded.append(_encoded(text, bos, ids, offsets, len(front.prompt + front.prefix)))
    return list(zip(encoded[::2], encoded[1::2], strict=True))


def _encoded(
    text: str, bos: list[int], ids: list[int], offsets: list[tuple[int, int]], response: int
) -> Encoded:
    bounds = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    bounds = np.concatenate([np.zeros((len(bos), 2), np.int64), bounds])
    start, end = bounds[:, 0], bounds[:, 1]
    reached = np.concatenate([[0], np.maximum.accumulate(end)])
    # Some tokenizers throw white space away: the token after it then stands for it as well.
    return Encoded(
        text=text,
        ids=np.asarray(bos + ids, dtype=np.int64),
        start=np.minimum(start, reached[:-1]),
        end=end,
        response=response,
        gap=_first_gap(text, np.append(start, len(text)), reached),
    )


def _first_gap(text: str, start: np.ndarray, reached: np.ndarray) -> int:
    """The first character in no token: white space counts at the text's end only; -1 if none."""
    for gap in np.flatnonzero(start > reached):
        for position in range(reached[gap], start[gap]):
            if not text[position].isspace():
                return position
    return -1 if reached[-1] >= len(text) else int(reached[-1])


def _try_render(pair: Pair, renderer: Renderer) -> Rendered | RowError:
    try:
        return renderer.render(pair)
    except RowError as error:
        return error


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
        _finish_side(pair, name, side, encoded, end_id, renderer, vocab_size)
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


def _finish_side(
    pair: Pair,
    name: str,
    side: Side,
    encoded: Encoded,
    end_id: int | None,
    renderer: Renderer,
    vocab_size: int | None,
) -> TokenizedSide:
    """Flags, weights and the end token of one sequence."""
    _check_coverage(pair, name, encoded, renderer.tokenizer)
    in_response = (encoded.end > encoded.response) & (encoded.start < encoded.end)
    scored = in_response & ~_wholly_masked(encoded, side)
    ids = encoded.ids
    ends_already = end_id is not None and len(ids) > 0 and ids[-1] == end_id and scored[-1]
    append = end_id is not None and not ends_already
    if append and end_id is not None:
        ids, scored = np.append(ids, end_id), np.append(scored, True)
        in_response = np.append(in_response, True)
    first_scored = int(np.argmax(scored)) if (scored[:-1] if append else scored).any() else -1
    if first_scored < 0:
        raise RowError(
            pair.source, pair.row, name, "has no scored token", "Unmask some of the response."
        )
    if first_scored == 0:
        problem = "is missing or empty: nothing precedes the first scored token to predict it"
        raise RowError(pair.source, pair.row, "prompt", problem, "Give a prompt.")
    tokens = Tokens(ids, in_response, encoded, append, renderer.tokenizer)
    weights = np.where(scored, bind_weights(pair, name, side, tokens), 0.0).astype(np.float32)
    _check_vocabulary(pair, name, ids, vocab_size)
    length = _allowed_length(pair, name, len(ids), first_scored, renderer.options)
    implied = length == len(ids) and end_is_implied(side, tokens)
    if not weights[: length - implied].any():
        problem = "has no token with a weight above 0"
        if implied:
            problem += ", so only the end-of-sequence token, weight 1, would be trained"
        raise RowError(pair.source, pair.row, _weights_field(name, side), problem, _WEIGH)
    return TokenizedSide(
        ids=ids[:length].astype(np.int32),
        scored=scored[:length],
        weights=weights[:length],
        eos=bool((append or ends_already) and length == len(ids)),
    )


def _weights_field(name: str, side: Side) -> str:
    """The field that the side's weights came from."""
    if side.token_weights is not None and side.token_weights.context is not None:
        return f"prob_result.{'pos' if name == 'chosen' else 'neg'}.ce_prob"
    return f"{name}_spans" if side.spans else f"{name}_weights"


def _wholly_masked(encoded: Encoded, side: Side) -> np.ndarray:
    """(n,) bool: tokens whose characters of the response are all masked."""
    if not side.masked:
        return np.zeros(len(encoded.ids), dtype=bool)
    free = np.ones(len(encoded.text) - encoded.response + 1, dtype=np.int64)
    for start, end in side.masked:
        free[start:end] = 0
    before = np.concatenate([[0], np.cumsum(free)])  # free characters before each position
    low = np.maximum(encoded.start - encoded.response, 0)
    high = np.maximum(encoded.end - encoded.response, 0)
    return before[high] == before[low]


def _check_coverage(pair: Pair, name: str, encoded: Encoded, tokenizer: Any) -> None:
    """A tokenizer without an unknown token drops what it does not know: refuse, never drop.

    Its offsets then close up over the gap, so the character at fault has to be looked for.
    """
    if encoded.gap < 0:
        return
    position = next(
        (
            place
            for place, character in enumerate(encoded.text)
            if not character.isspace()
            and not tokenizer(character, add_special_tokens=False)["input_ids"]
        ),
        encoded.gap,
    )
    if encoded.text[position].isspace():
        return  # white space that the tokenizer strips by design
    problem = f"holds {encoded.text[position]!r}, for which the tokenizer has no token"
    field = name if position >= encoded.response else "prompt"
    remedy = "Replace the character, or use a tokenizer that knows it."
    raise RowError(pair.source, pair.row, field, problem, remedy)


def _check_vocabulary(pair: Pair, name: str, ids: np.ndarray, vocab_size: int | None) -> None:
    if vocab_size is not None and int(ids.max()) >= vocab_size:
        problem = f"holds the token id {int(ids.max())}, but the model knows {vocab_size} tokens"
        remedy = "Use the tokenizer that belongs to the model, or resize its embedding."
        raise RowError(pair.source, pair.row, name, problem, remedy)


def _allowed_length(
    pair: Pair, name: str, length: int, first_scored: int, options: TokenizeOptions
) -> int:
    """How many tokens stay. Only the end of a whole solution is ever cut."""
    limit = options.max_length
    if limit is None or length <= limit:
        return length
    problem = f"has {length} tokens with its prompt, more than max_length {limit}"
    remedy = 'Raise max_length, or set too_long to "skip" or "truncate_end".'
    if options.too_long == "truncate_end":
        if pair.append_eos and first_scored < limit:
            return limit
        problem += "; " + ("the prompt" if pair.append_eos else "a single step") + " is never cut"
        remedy = 'Raise max_length, or set too_long to "skip".'
    raise TooLongError(pair.source, pair.row, name, problem, remedy)


def _common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two id vectors."""
    shortest = min(len(a), len(b))
    differ = np.flatnonzero(a[:shortest] != b[:shortest])
    return int(differ[0]) if len(differ) else shortest
