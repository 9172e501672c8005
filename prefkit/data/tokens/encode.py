"""Text → ids, each with the characters that it holds.

Context and response are tokenised as *one* string, as the model reads it: for most tokenizers,
pieces that are tokenised separately are another sequence. But in sampling, the generation prompt
is tokenised before the model writes anything, so in chat form its ids stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prefkit.data.pair import Rendered
from prefkit.data.text.render import Renderer
from prefkit.data.text.response import Written


@dataclass(frozen=True)
class Encoded:
    """One tokenised sequence with its characters, before flags and weights.

    Attributes:
        text: prompt + prefix + response.
        ids: (n,) int64, special tokens before the text included, the end token not.
        start, end: (n,) int64, the characters `[start, end)` of `text` that each token holds.
        response: the character where the response begins.
        gap: the first character that no token holds (see `_first_gap`), -1 = none.
        merged: the character that begins what the model writes, where the tokenizer has no ids
            that begin there; -1 = it has.
    """

    text: str
    ids: np.ndarray
    start: np.ndarray
    end: np.ndarray
    response: int
    gap: int
    merged: int = -1

    @property
    def in_response(self) -> np.ndarray:
        """(n,) bool: tokens that hold a character of the response, masked ones included."""
        return (self.end > self.response) & (self.start < self.end)


def encode(
    fronts: Sequence[Rendered], responses: Sequence[Written], renderer: Renderer
) -> list[Encoded]:
    """Each sequence as ids with character offsets.

    In chat form, the sequence begins with the very ids that sampling would show. Where the
    tokenizer would merge their end with the beginning of what follows, the two are tokenised apart,
    as they are when the model writes; so, too, where it goes on after a tool's result.

    Returns:
        One a response, in their order; `Encoded.ids` are int64.
    """
    texts = [
        front.prompt + front.prefix + written.side.text
        for front, written in zip(fronts, responses, strict=True)
    ]
    if not texts:
        return []
    shown = _shown(fronts, renderer)
    encoded = []
    for front, written, text, whole in zip(
        fronts, responses, texts, _tokenized(texts, renderer), strict=True
    ):
        response = len(front.prompt + front.prefix)
        (ids, offsets), merged = whole, -1
        if front.is_chat:
            begin = shown[front.prompt[: front.generation]]
            cuts = [front.generation, *(response + place for place in written.begins)]
            if ids[: len(begin)] != begin or not _are_bounds(cuts[1:], offsets):
                ids, offsets = _apart(text, cuts, renderer)
                if renderer.tokenizer.decode(ids) != renderer.tokenizer.decode(whole[0]):
                    merged = front.generation  # a tokenizer that begins every text with a space
        bos = [] if front.is_chat or ids[: len(renderer.bos)] == renderer.bos else renderer.bos
        encoded.append(_encoded(text, bos, ids, offsets, response, merged))
    return encoded


_Ids = tuple[list[int], list[tuple[int, int]]]  # ids, and the characters that each holds


def _tokenized(texts: Sequence[str], renderer: Renderer) -> list[_Ids]:
    batch = renderer.exact(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        padding=False,
        truncation=False,
        verbose=False,
    )
    return list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))


def _shown(fronts: Sequence[Rendered], renderer: Renderer) -> dict[str, list[int]]:
    """The ids of what sampling would show of each row in chat form."""
    texts = list({front.prompt[: front.generation]: None for front in fronts if front.is_chat})
    if not texts:
        return {}
    return {text: ids for text, (ids, _) in zip(texts, _tokenized(texts, renderer), strict=True)}


def _are_bounds(cuts: Sequence[int], offsets: Sequence[tuple[int, int]]) -> bool:
    """Whether no token holds characters on both sides of a cut."""
    if not cuts:
        return True
    start, end = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    return not any(bool(((start < cut) & (cut < end)).any()) for cut in cuts)


def _apart(text: str, cuts: Sequence[int], renderer: Renderer) -> _Ids:
    """The text tokenised piece by piece."""
    bounds = list(pairwise([0, *cuts, len(text)]))
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    pieces = _tokenized([text[start:stop] for start, stop in bounds], renderer)
    for (start, _), (piece, places) in zip(bounds, pieces, strict=True):
        ids += piece
        offsets += [(low + start, high + start) for low, high in places]
    return ids, offsets


def _encoded(
    text: str,
    bos: list[int],
    ids: list[int],
    offsets: list[tuple[int, int]],
    response: int,
    merged: int,
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
        merged=merged,
    )


def _first_gap(text: str, start: np.ndarray, reached: np.ndarray) -> int:
    """The first character in no token: white space counts at the text's end only; -1 if none."""
    for gap in np.flatnonzero(start > reached):
        for position in range(reached[gap], start[gap]):
            if not text[position].isspace():
                return position
    return -1 if reached[-1] >= len(text) else int(reached[-1])
