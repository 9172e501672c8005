"""Tokens as people see them: characters, segment, weight and the part of the row they come from."""

from dataclasses import dataclass
from typing import Any

from prefkit.data.pair import Pair, Rendered, TokenizedPair, TokenizedSide
from prefkit.data.text.render import Renderer
from prefkit.data.tokens.encode import Encoded
from prefkit.data.tokens.sequence import Texts
from prefkit.data.tokens.tokenize import encode_pairs, write_pairs


@dataclass(frozen=True)
class TokenView:
    """One token as it is shown.

    Attributes:
        id: token id.
        text: its characters; of several tokens that share one character, the first has it and the
            others are empty. Special tokens that stand for no text have their name.
        segment: 2i / 2i + 1 for a scored token of pair i's chosen / rejected response, else -1.
        weight: 0 where not scored.
        part: "prompt", "prefix", "response" or "end".
    """

    id: int
    text: str
    segment: int
    weight: float
    part: str


def view_pair(
    pair: Pair, tokenized: TokenizedPair, index: int, renderer: Renderer
) -> tuple[list[TokenView], list[TokenView]]:
    """The tokens of both sequences of a pair, as (chosen, rejected)."""
    texts = write_pairs([pair], renderer)[0]
    assert isinstance(texts, Texts)  # the pair was tokenised before
    front, tokenizer = texts.front, renderer.tokenizer
    chosen, rejected = encode_pairs([texts], renderer)[0]
    return (
        _view_side(chosen, tokenized.chosen, front, 2 * index, tokenizer),
        _view_side(rejected, tokenized.rejected, front, 2 * index + 1, tokenizer),
    )


def _view_side(
    encoded: Encoded, side: TokenizedSide, front: Rendered, segment: int, tokenizer: Any
) -> list[TokenView]:
    views, reached = [], 0
    for place, token_id in enumerate(side.ids.tolist()):
        if place < len(encoded.ids):
            start, end = int(encoded.start[place]), int(encoded.end[place])
            text = encoded.text[max(start, reached) : end]
            reached = max(reached, end)
            if end == 0:  # a token before all text, such as BOS
                text = tokenizer.convert_ids_to_tokens(token_id)
            part = _part(end, front)
        else:
            text, part = tokenizer.convert_ids_to_tokens(token_id), "end"
        views.append(
            TokenView(
                id=token_id,
                text=text,
                segment=segment if side.scored[place] else -1,
                weight=float(str(side.weights[place])),  # shortest form: 0.3, not 0.30000001
                part=part,
            )
        )
    return views


def _part(end: int, front: Rendered) -> str:
    if end > len(front.prompt) + len(front.prefix):
        return "response"
    return "prefix" if end > len(front.prompt) else "prompt"
