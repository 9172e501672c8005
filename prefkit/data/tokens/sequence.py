"""One sequence: its text, as ids with characters (encode.py) → flags, weights and the end token.

A token is scored when it holds a character of the response that is not masked; so a token that
straddles the boundary counts. Pairs (tokenize.py) and single solutions (solutions.py) are made of
such sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefkit.data.pair import Front, Rendered, Side, TokenizedSide
from prefkit.data.text.render import Renderer, TokenizeOptions
from prefkit.data.text.response import Written, write_response
from prefkit.data.tokens.encode import Encoded
from prefkit.data.tokens.weights import Tokens, bind_weights, end_is_implied
from prefkit.errors import EmptyError, NothingLeftError, RowError, TooLongError

_WEIGH = "Give one weight above 0, or remove the row."


@dataclass(frozen=True)
class Texts:
    """A row as text.

    Attributes:
        front: the context of its responses.
        sides: name → the response.
    """

    front: Rendered
    sides: Mapping[str, Written]


def try_write(front: Front, sides: Mapping[str, Side], renderer: Renderer) -> Texts | RowError:
    """The row as text, or why there is none (the chat template refuses or loses something, …)."""
    try:
        rendered = renderer.render(front)
        written = {
            name: write_response(front, name, side, rendered, renderer)
            for name, side in sides.items()
        }
        return Texts(rendered, written)
    except RowError as error:
        return error


def finish_side(
    front: Front,
    name: str,
    written: Written,
    encoded: Encoded,
    renderer: Renderer,
    vocab_size: int | None,
) -> TokenizedSide:
    """Flags, weights and the end token of one sequence.

    Args:
        front: the context of the response; names the row in messages.
        name: the response's field, such as "chosen".
        written: the response.
        encoded: the sequence of context and response.
        renderer: knows the tokenizer and the options.
        vocab_size: rows of the model's embedding; ids beyond it are refused.

    Raises:
        RowError: no scored token or too many tokens (`TooLongError`), weights that belong to other
            tokens, a character without a token, …
    """
    side, end_id = written.side, written.end
    if side.absent:
        return _context_alone(encoded)
    _check_coverage(front, name, encoded, renderer.tokenizer)
    in_response = encoded.in_response
    scored = in_response & ~_wholly_masked(encoded, side)
    ids = encoded.ids
    ends_already = end_id is not None and len(ids) > 0 and ids[-1] == end_id and scored[-1]
    append = end_id is not None and not ends_already
    if append and end_id is not None:
        ids, scored = np.append(ids, end_id), np.append(scored, True)
        in_response = np.append(in_response, True)
    first_scored = _first_scored(front, name, scored, append)
    tokens = Tokens(ids, in_response, encoded, append, renderer.tokenizer)
    weights = np.where(scored, bind_weights(front, name, side, tokens), 0.0).astype(np.float32)
    _check_vocabulary(front, name, ids, vocab_size)
    length = _allowed_length(front, name, len(ids), first_scored, renderer.options)
    implied = length == len(ids) and end_is_implied(side, tokens)
    if not weights[: length - implied].any():
        raise _weightless(front, name, side, implied)
    return TokenizedSide(
        ids=ids[:length].astype(np.int32),
        scored=scored[:length],
        weights=weights[:length],
        eos=bool((append or ends_already) and length == len(ids)),
    )


def _context_alone(encoded: Encoded) -> TokenizedSide:
    """The sequence of a response that is absent: nothing of it counts."""
    nothing = np.zeros(len(encoded.ids), dtype=np.float32)
    ids = encoded.ids.astype(np.int32)
    return TokenizedSide(ids=ids, scored=nothing > 0, weights=nothing, eos=False)


def _first_scored(front: Front, name: str, scored: np.ndarray, append: bool) -> int:
    """The first scored position; an appended end token alone does not count.

    Raises:
        RowError: there is none, or nothing precedes it that could predict it.
    """
    if not (scored[:-1] if append else scored).any():
        remedy = "Unmask some of the response."
        raise RowError(front.source, front.row, name, "has no scored token", remedy)
    first = int(np.argmax(scored))
    if first == 0:
        problem = "is missing or empty: nothing precedes the first scored token to predict it"
        raise EmptyError(front.source, front.row, "prompt", problem, "Give a prompt.")
    return first


def _weightless(front: Front, name: str, side: Side, implied: bool) -> RowError:
    """The error of a response whose weights are all 0, an implied end token's left aside."""
    problem = "has no token with a weight above 0"
    if implied:
        problem += ", so only the end-of-sequence token, weight 1, would be trained"
    return RowError(front.source, front.row, _weights_field(name, side), problem, _WEIGH)


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
    if encoded.merged >= 0:
        shown = encoded.text[max(encoded.merged - 10, 0) : encoded.merged + 10]
        problem = f"is merged with the generation prompt by the tokenizer, around {shown!r}"
        remedy = "Begin the response with another character than white space."
        raise RowError(front.source, front.row, name, problem, remedy)
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
        if front.append_eos:
            problem += ", which its prompt fills; the prompt is never cut"
            remedy = 'Raise max_length, or set empty to "skip": nothing of the response is left.'
            raise NothingLeftError(front.source, front.row, name, problem, remedy)
        problem += "; a single step is never cut"
        remedy = 'Raise max_length, or set too_long to "skip".'
    raise TooLongError(front.source, front.row, name, problem, remedy)
