"""One sequence: its text → ids with characters → flags, weights and the end token.

Front and response are tokenised as *one* string, the way the model will meet it. A token is scored
when it holds a character of the response that is not masked; so a token that straddles the boundary
counts. Pieces are never tokenised apart and glued together: for most tokenizers that is another
sequence. Pairs (tokenize.py) and single solutions (solutions.py) are made of such sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefkit.data.pair import Front, Side, TokenizedSide
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

    @property
    def in_response(self) -> np.ndarray:
        """(n,) bool: tokens that hold a character of the response, masked ones included."""
        return (self.end > self.response) & (self.start < self.end)


def try_render(front: Front, renderer: Renderer) -> Rendered | RowError:
    """The front as text, or why the chat template refuses it."""
    try:
        return renderer.render(front)
    except RowError as error:
        return error


def encode(
    fronts: Sequence[Rendered], responses: Sequence[str], renderer: Renderer
) -> list[Encoded]:
    """Each sequence as ids with character offsets; one call of the tokenizer."""
    texts = [
        front.prompt + front.prefix + text for front, text in zip(fronts, responses, strict=True)
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
    for front, text, ids, offsets in zip(
        fronts, texts, batch["input_ids"], batch["offset_mapping"], strict=True
    ):
        bos = [] if front.is_chat or ids[: len(renderer.bos)] == renderer.bos else renderer.bos
        encoded.append(_encoded(text, bos, ids, offsets, len(front.prompt + front.prefix)))
    return encoded


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


def finish_side(
    front: Front,
    name: str,
    side: Side,
    encoded: Encoded,
    end_id: int | None,
    renderer: Renderer,
    vocab_size: int | None,
) -> TokenizedSide:
    """Flags, weights and the end token of one sequence.

    Args:
        front: what the sequence begins with, and its place for messages.
        name: the response's field, such as "chosen".
        side: the response.
        encoded: the sequence of front and response.
        end_id: the id to end the sequence with, or None.
        renderer: knows the tokenizer and the options.
        vocab_size: rows of the model's embedding; ids beyond it are refused.

    Raises:
        RowError: no scored token or too many tokens (`TooLongError`), weights that belong to other
            tokens, a character without a token, …
    """
    _check_coverage(front, name, encoded, renderer.tokenizer)
    in_response = encoded.in_response
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
            front.source, front.row, name, "has no scored token", "Unmask some of the response."
        )
    if first_scored == 0:
        problem = "is missing or empty: nothing precedes the first scored token to predict it"
        raise RowError(front.source, front.row, "prompt", problem, "Give a prompt.")
    tokens = Tokens(ids, in_response, encoded, append, renderer.tokenizer)
    weights = np.where(scored, bind_weights(front, name, side, tokens), 0.0).astype(np.float32)
    _check_vocabulary(front, name, ids, vocab_size)
    length = _allowed_length(front, name, len(ids), first_scored, renderer.options)
    implied = length == len(ids) and end_is_implied(side, tokens)
    if not weights[: length - implied].any():
        problem = "has no token with a weight above 0"
        if implied:
            problem += ", so only the end-of-sequence token, weight 1, would be trained"
        raise RowError(front.source, front.row, _weights_field(name, side), problem, _WEIGH)
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


def _check_coverage(front: Front, name: str, encoded: Encoded, tokenizer: Any) -> None:
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
    raise RowError(front.source, front.row, field, problem, remedy)


def _check_vocabulary(front: Front, name: str, ids: np.ndarray, vocab_size: int | None) -> None:
    if vocab_size is not None and int(ids.max()) >= vocab_size:
        problem = f"holds the token id {int(ids.max())}, but the model knows {vocab_size} tokens"
        remedy = "Use the tokenizer that belongs to the model, or resize its embedding."
        raise RowError(front.source, front.row, name, problem, remedy)


def _allowed_length(
    front: Front, name: str, length: int, first_scored: int, options: TokenizeOptions
) -> int:
    """How many tokens stay. Only the end of a whole solution is ever cut."""
    limit = options.max_length
    if limit is None or length <= limit:
        return length
    problem = f"has {length} tokens with its prompt, more than max_length {limit}"
    remedy = 'Raise max_length, or set too_long to "skip" or "truncate_end".'
    if options.too_long == "truncate_end":
        if front.append_eos and first_scored < limit:
            return limit
        problem += "; " + ("the prompt" if front.append_eos else "a single step") + " is never cut"
        remedy = 'Raise max_length, or set too_long to "skip".'
    raise TooLongError(front.source, front.row, name, problem, remedy)
