"""Mismatched responses: a prompt with the response to another one, for the reference point of KTO.

z0 estimates KL(policy‖reference) by responses that are not the prompt's own (arXiv 2402.01306,
section 4.1): here those of the pair before it in the data set, at the level of token ids. (TRL
pairs rows within blocks of the batch size instead. Both are a shift by one.)
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prefkit.data.pair import TokenizedPair, TokenizedSide
from prefkit.errors import ConfigError

_NONE = (
    "All rows of the {name} data have the same prompt, so there is no mismatched response from "
    "which kto could estimate its reference point. Give rows of other prompts, or set "
    "reference_point: false."
)


def with_mismatched(
    pairs: Sequence[TokenizedPair], max_length: int | None = None, name: str = "train"
) -> list[TokenizedPair]:
    """The pairs, each with its prompt before the responses of the nearest pair before it that has
    another prompt (from the first pair on to the last): one for each response of its own, of the
    same side where there is one.

    Args:
        pairs: of a whole data set.
        max_length: tokens that a sequence may have; the end of a longer one is cut off. None:
            any number.
        name: of the data, for the message.

    Raises:
        ConfigError: all pairs have the same prompt.
    """
    found, other = [], None
    for place, pair in enumerate(pairs):
        other = _before(pairs, place, other)
        if other is None:
            raise ConfigError(_NONE.format(name=name))
        own = [(side, beside) for side, beside in _sides(pair, other) if side.scored.any()]
        made = [_joined(side, beside, max_length) for side, beside in own]
        found.append(replace(pair, mismatched=tuple(one for one in made if one is not None)))
    return found


def _before(
    pairs: Sequence[TokenizedPair], place: int, of_last: TokenizedPair | None
) -> TokenizedPair | None:
    """The nearest pair before with another prompt; `of_last` is that of the place before."""
    question, last = pairs[place].question, pairs[place - 1]
    if question is None:
        return last if len(pairs) > 1 else None
    if last.question != question:
        return last
    if place:
        return of_last
    others = (other for other in reversed(pairs) if other.question != question)
    return next(others, None)


def _sides(pair: TokenizedPair, other: TokenizedPair) -> list[tuple[TokenizedSide, TokenizedSide]]:
    """Each side with the other pair's of the same kind, or with the one that it has."""
    chosen, rejected = other.chosen, other.rejected
    if not chosen.scored.any():
        chosen = rejected
    elif not rejected.scored.any():
        rejected = chosen
    return [(pair.chosen, chosen), (pair.rejected, rejected)]


def _joined(
    side: TokenizedSide, other: TokenizedSide, max_length: int | None
) -> TokenizedSide | None:
    """The prompt of one before the response of the other; None where there is no room for it."""
    own, start = int(side.scored.argmax()), int(other.scored.argmax())
    parts = (
        np.concatenate([side.ids[:own], other.ids[start:]]),
        np.concatenate([side.scored[:own], other.scored[start:]]),
        np.concatenate([side.weights[:own], other.weights[start:]]),
    )
    ids, scored, weights = (part[:max_length] for part in parts)
    if not scored.any():
        return None
    return TokenizedSide(ids=ids, scored=scored, weights=weights, eos=len(ids) == len(parts[0]))
