"""Weights from a row → one weight a token, refused where they were made for other tokens.

A weight off by one token is invisible in a loss curve. So weights that name their tokens are
compared with the ids one by one, and all others by their number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prefkit.data.pair import Front, Side, TokenWeights
from prefkit.data.tokens.encode import Encoded
from prefkit.errors import RowError


@dataclass(frozen=True)
class Tokens:
    """The tokens of one sequence that weights are bound to.

    Attributes:
        ids: (n,) int64, end token included where appended.
        in_response: (n,) bool, True for the response's tokens, masked ones and the end included.
        encoded: the sequence's characters.
        has_end: whether the last id is the appended end token, which has no characters.
        tokenizer: to name tokens in messages.
    """

    ids: np.ndarray
    in_response: np.ndarray
    encoded: Encoded
    has_end: bool
    tokenizer: Any


def bind_weights(front: Front, name: str, side: Side, tokens: Tokens) -> np.ndarray:
    """One weight for every token of the sequence; 1.0 where the row says nothing.

    Args:
        name: "chosen" or "rejected".

    Returns:
        (n,) float64.

    Raises:
        RowError: the weights' number or tokens do not fit.
    """
    weights = np.ones(len(tokens.ids))
    if side.spans:
        count = len(tokens.encoded.ids)
        weights[:count] = _span_weights(side, tokens.encoded)
    elif side.token_weights is not None:
        values = _fit(front, name, side.token_weights, tokens)
        weights[np.flatnonzero(tokens.in_response)[: len(values)]] = values
    return weights


def end_is_implied(side: Side, tokens: Tokens) -> bool:
    """Whether the end token has weight 1 by default: it was appended, and no given weight is its
    own."""
    given = side.token_weights
    if not tokens.has_end or given is None or given.context is not None:
        return tokens.has_end
    return len(given.weights) < int(tokens.in_response.sum())


def _span_weights(side: Side, encoded: Encoded) -> np.ndarray:
    """The weight of the span that holds a token's first character that is not white space."""
    text = side.text
    of_character = np.ones(len(text) + 1)
    for start, end, weight in side.spans:
        of_character[start:end] = weight
    # next_solid[c]: the first position ≥ c that is not white space
    positions = np.array(
        [len(text) if c.isspace() else i for i, c in enumerate(text)] + [len(text)]
    )
    next_solid = np.minimum.accumulate(positions[::-1])[::-1]
    low = np.clip(encoded.start - encoded.response, 0, len(text))
    high = np.clip(encoded.end - encoded.response, 0, len(text))
    solid = next_solid[low]
    return of_character[np.where(solid < high, solid, low)]


def _fit(front: Front, name: str, given: TokenWeights, tokens: Tokens) -> np.ndarray:
    """The weights for the first response tokens on; an end token left out keeps weight 1."""
    if given.context is not None:
        return _fit_joint(front, name, given, tokens)
    count = int(tokens.in_response.sum())
    allowed = (count, count - 1) if tokens.has_end else (count,)
    if len(given.weights) not in allowed:
        end = " and its end-of-sequence token" if tokens.has_end else ""
        problem = f"has {len(given.weights)} weights for a response of {allowed[-1]} tokens{end}"
        remedy = "Give one weight a token of this tokenizer, or weights by span (character)."
        raise RowError(front.source, front.row, f"{name}_weights", problem, remedy)
    if given.tokens is not None:
        _check_tokens(front, name, given.tokens, tokens)
    return np.asarray(given.weights)


def _fit_joint(front: Front, name: str, given: TokenWeights, tokens: Tokens) -> np.ndarray:
    """cDPO: one value for each token but the first of prompt + response, counted from the end.

    Where the prompt is now written another way (chat form, a joiner), its tokens differ and only
    the part that the file itself gives to the response can be compared.
    """
    assert given.context is not None
    count = int(tokens.in_response.sum()) - tokens.has_end
    side = "pos" if name == "chosen" else "neg"
    if len(given.weights) == len(tokens.encoded.ids) - 1:
        begins = len(given.weights) - count
        if abs(given.context - begins) > 1:  # 1: a token that straddles prompt and response
            problem = f"is {given.context}, but the response begins at score {begins}"
            remedy = "Correct it, or score the row again with this tokenizer."
            field = f"prob_result.{side}.response_start_idx"
            raise RowError(front.source, front.row, field, problem, remedy)
        return np.asarray(given.weights[-count:])
    if len(given.weights) - given.context == count:
        return np.asarray(given.weights[given.context :])
    problem = (
        f"has {len(given.weights)} scores ({len(given.weights) - given.context} of the response) "
        f"for {len(tokens.encoded.ids)} tokens ({count} of the response)"
    )
    remedy = "Score the row again with this tokenizer, and write the prompt as it was then."
    raise RowError(front.source, front.row, f"prob_result.{side}.ce_prob", problem, remedy)


def _check_tokens(front: Front, name: str, given: tuple[int | str, ...], tokens: Tokens) -> None:
    ids = tokens.ids[tokens.in_response]
    for place, (token, actual) in enumerate(zip(given, ids.tolist(), strict=False)):
        if isinstance(token, int):
            same = token == actual
        else:
            same = token in _names(tokens.tokenizer, actual, _surface(tokens, place))
        if not same:
            problem = (
                f"was made for other tokens: token {place} is {token!r} there, "
                f"{actual} ({tokens.tokenizer.decode([actual])!r}) here"
            )
            remedy = "Score the row again with this tokenizer, or give weights by span (character)."
            raise RowError(front.source, front.row, f"{name}_weights", problem, remedy)


def _names(tokenizer: Any, token_id: int, surface: str) -> tuple[str, ...]:
    """The ways a token may be written as a string: its entry, decoded, or its characters."""
    return (tokenizer.convert_ids_to_tokens(token_id), tokenizer.decode([token_id]), surface)


def _surface(tokens: Tokens, place: int) -> str:
    index = int(np.flatnonzero(tokens.in_response)[place])
    if index >= len(tokens.encoded.ids):
        return ""
    encoded = tokens.encoded
    return encoded.text[encoded.start[index] : encoded.end[index]]
