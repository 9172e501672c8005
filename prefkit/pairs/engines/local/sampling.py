"""Sampling row by row inside `generate`: every row has its own temperature, nucleus, seed and end.

`generate` itself samples a batch with one setting and one random state, so what a row becomes
depends on the rows beside it. Here each row has a stream of uniform numbers from its own seed, one
a token, and takes the token at that point of its cumulative distribution: an exact sample, at the
cost of one cumulative sum. `generate` then "decodes greedily" from scores that leave one token.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from prefkit.errors import PrefkitError
from prefkit.pairs.engines.base import Request

# Most probable tokens looked at first for a nucleus; more only where their mass does not suffice.
_NUCLEUS = 128
# A batch goes on with its unfinished rows alone as soon as this share of its rows has ended.
_ENDED = 0.25


@dataclass(eq=False)
class Row:
    """A request that is being sampled.

    Attributes:
        request: as asked.
        prompt: token ids of the text, with those the tokenizer puts before it.
        limit: most tokens to write, within the model's positions.
        draws: (limit,), float64, in [0, 1), on the CPU: the request's own random numbers.
        written: ids so far, the end-of-sequence token included.
        ended: why it ended ("end", "stop", "length"), "" while it goes on.
    """

    request: Request
    prompt: list[int]
    limit: int
    draws: torch.Tensor
    written: list[int] = field(default_factory=list)
    ended: str = ""


def draws_of(seed: int, count: int) -> torch.Tensor:
    """(count,) uniform float64 numbers in [0, 1) of a seed, the first the same for any count."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64)


class RowSampler(LogitsProcessor):
    """Leaves each row the one token that its own draw picks.

    Args:
        rows: the batch's rows in order.
        start: length of `input_ids` when `generate` is called.
        device: of the logits.
    """

    def __init__(self, rows: Sequence[Row], start: int, device: torch.device) -> None:
        self.start = start
        exact = torch.float32 if device.type == "mps" else torch.float64
        left = max(row.limit - len(row.written) for row in rows)
        draws = torch.zeros(len(rows), left, dtype=exact)
        for index, row in enumerate(rows):
            own = row.draws[len(row.written) :]
            draws[index, : len(own)] = own
        self.draws = draws.to(device)
        temperatures = torch.tensor([row.request.temperature for row in rows])
        self.greedy = (temperatures == 0).to(device) if (temperatures == 0).any() else None
        self.all_greedy = bool((temperatures == 0).all())
        self.temperatures = temperatures.where(temperatures > 0, 1.0)[:, None].to(device)
        top_ps = torch.tensor([row.request.top_p for row in rows])
        indices = (top_ps < 1).nonzero()[:, 0]
        self.nucleus = indices.to(device) if len(indices) else None
        self.top_ps = top_ps[indices][:, None].to(device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores (rows, vocabulary), fp32 → the same shape, 0 for the token taken, else −inf."""
        if self.all_greedy:
            return scores
        step = min(input_ids.shape[1] - self.start, self.draws.shape[1] - 1)
        probabilities = (scores / self.temperatures).softmax(-1)
        if self.nucleus is not None:
            kept = keep_nucleus(probabilities[self.nucleus], self.top_ps)
            probabilities = probabilities.index_copy(0, self.nucleus, kept)
        taken = pick(probabilities, self.draws[:, step])
        if self.greedy is not None:
            taken = torch.where(self.greedy, scores.argmax(-1), taken)
        return torch.full_like(scores, -torch.inf).scatter_(1, taken[:, None], 0.0)


def pick(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative mass passes a draw: never one of probability 0.

    Args:
        probabilities: (rows, vocabulary), of any positive mass.
        draws: (rows,), in [0, 1], 1 only by rounding; sums are taken in their dtype.

    Returns:
        (rows,) token ids.

    Raises:
        PrefkitError: the logits were not numbers.
    """
    cumulative = probabilities.cumsum(-1, dtype=draws.dtype)
    mass = cumulative[:, -1]
    if not bool(torch.isfinite(mass).all()):
        raise PrefkitError(
            "The model's logits are not numbers (NaN or infinite). Load it in another dtype: "
            "bfloat16 or float32 in place of float16."
        )
    # No token passes the whole mass, and a draw, or its product with the mass, may round up to it.
    points = draws.clamp(max=1 - torch.finfo(draws.dtype).eps) * mass
    return torch.searchsorted(cumulative, points[:, None], right=True)[:, 0]


def keep_nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Sets to 0 what is outside the smallest set of likeliest tokens whose mass reaches top_p.

    Tokens exactly as likely as the last of the set are kept with it, so that the outcome does not
    depend on an order among equals. (Holtzman et al., arXiv 1904.09751.)

    Args:
        probabilities: (rows, vocabulary), each row of mass 1.
        top_p: (rows, 1), below 1.
    """
    size = min(_NUCLEUS, probabilities.shape[-1])
    while True:  # a full sort of the vocabulary costs more than the rest of the sampling
        top = probabilities.topk(size, dim=-1).values
        before = top.cumsum(-1) - top
        if size == probabilities.shape[-1] or bool((before[:, -1:] >= top_p).all()):
            break
        size = min(size * 16, probabilities.shape[-1])
    smallest = top.masked_fill(before >= top_p, torch.inf).amin(-1, keepdim=True)
    return probabilities.where(probabilities >= smallest, 0.0)


class RowEnds(StoppingCriteria):
    """Notes what every row writes, and when it has ended; stops when enough rows have.

    Args:
        rows: the batch's rows in order, none of them ended.
        ends: ids that end a text.
        tokenizer: to find stop texts.
        leave_early: stop as soon as a quarter of the rows has ended, so that the caller can go on
            with the others alone.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        ends: Collection[int],
        tokenizer: PreTrainedTokenizerBase,
        *,
        leave_early: bool,
    ) -> None:
        self.rows, self.ends, self.tokenizer = rows, ends, tokenizer
        self.left = len(rows)
        self.enough = int(len(rows) * (1 - _ENDED)) if leave_early else 0

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None, **unused: Any
    ) -> torch.Tensor:
        """(rows,) bool: all true when it is time to stop, else all false."""
        if self.left > self.enough:  # else a backend that looks one step late asks once more
            for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
                if not row.ended:
                    row.written.append(token)
                    row.ended = self._ended(row)
                    self.left -= bool(row.ended)
        done = self.left <= self.enough
        return torch.full((len(self.rows),), done, dtype=torch.bool, device=input_ids.device)

    def _ended(self, row: Row) -> str:
        if row.written[-1] in self.ends:
            return "end"
        if row.request.stop and self._has_stop(row):
            return "stop"
        return "length" if len(row.written) >= row.limit else ""

    def _has_stop(self, row: Row) -> bool:
        """Looks at the last tokens only: one holds at least a byte, so these hold any stop text."""
        longest = max(len(text.encode()) for text in row.request.stop)
        text = self.tokenizer.decode(
            row.written[-longest - 4 :],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return any(stop in text for stop in row.request.stop)


_STOPPING = logging.getLogger("transformers.generation.stopping_criteria")


@contextlib.contextmanager
def bare(model: Any) -> Iterator[None]:
    """Evaluation mode, no gradients, and none of the model's own generation settings.

    Nor a warning of the width: a batch with its padding may be wider than the model's positions,
    and of that transformers warns; no row ever is.
    """
    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    _STOPPING.addFilter(_is_of_no_width)
    try:
        with torch.inference_mode():
            yield
    finally:
        _STOPPING.removeFilter(_is_of_no_width)
        model.generation_config = own
        model.train(training)


def _is_of_no_width(record: logging.LogRecord) -> bool:
    return "the model's predefined maximum length" not in record.getMessage()
