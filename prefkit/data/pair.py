"""The three shapes a preference pair takes before it reaches the model.

    row on disk → Pair (text) → TokenizedPair (ids, weights) → PairBatch (padded tensors)

Which tokens count, and how much, is decided once, here, as two vectors: a token's `scored` flag
and its weight. Step masks, critical-token weights and masked tool output are only values of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from torch import Tensor

Message = dict[str, Any]


def is_message(value: Any) -> bool:
    """Whether a value is one message, of either form."""
    return isinstance(value, dict) and ("role" in value or {"from", "value"} <= set(value))


def is_conversational(value: Any) -> bool:
    """Whether a field holds messages, or a single one, rather than text."""
    return is_message(value) or (isinstance(value, list) and bool(value) and is_message(value[0]))


@dataclass(frozen=True, kw_only=True)
class TokenWeights:
    """One weight a response token, bound to the tokens it was computed for.

    Attributes:
        weights: one float ≥ 0 for each response token, EOS included where the ids include it.
        tokens: the tokens the weights belong to, as ids or as strings; None when the row does not
            carry them, in which case only the length can be checked.
        context: None, or how many of the first weights speak of tokens before the response: cDPO's
            scored files hold one value for each token but the first of prompt + response.
    """

    weights: tuple[float, ...]
    tokens: tuple[int | str, ...] | None = None
    context: int | None = None


@dataclass(frozen=True, kw_only=True)
class Side:
    """The chosen or the rejected response of a pair, as text.

    Attributes:
        text: what follows prompt and prefix, without the end-of-sequence token.
        spans: `(start, end, weight)` in characters of `text`; a token takes the weight of the span
            that holds its first character that is not white space (a token is often a space and
            a word), 1.0 outside all spans.
        masked: `(start, end)` in characters of `text` that are context and never scored (tool
            output).
        token_weights: weights by token instead of by character, or None.
        messages: the response as chat messages, the last of them the assistant's; the chat template
            writes them (text/response.py), and `text` only holds what the last one says until then.
            () = there is `text` alone.
        masks_tools: tool results between the assistant's messages are context.
        absent: there is no such response; the sequence is the context alone (`ABSENT`).
    """

    text: str
    spans: tuple[tuple[int, int, float], ...] = ()
    masked: tuple[tuple[int, int], ...] = ()
    token_weights: TokenWeights | None = None
    messages: tuple[Message, ...] = ()
    masks_tools: bool = True
    absent: bool = False


ABSENT = Side(text="", absent=True)


@dataclass(frozen=True, kw_only=True)
class Front:
    """The context of a response (prompt and prefix), and the row that it came from.

    Attributes:
        prompt: the question, as raw text or as chat messages.
        prefix: correct steps before the response; context, never scored.
        append_eos: True = the response ends a solution and the end-of-sequence token is scored;
            False = it ends a step, nothing is appended.
        source, row: where the row came from (for messages); `row` is 0-based.
        system: the row's own system text, of a prompt that is raw text; it makes it a chat, also
            where it is "".
        tools: schemas of the tools that the chat template gets.
        variables: the row's own variables of the chat template (`chat_template_kwargs`).
    """

    prompt: str | tuple[Message, ...]
    prefix: str
    append_eos: bool
    source: str
    row: int
    system: str | None = None
    tools: tuple[Any, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """The context of a response as text.

    Attributes:
        prompt: everything before the prefix.
        prefix: the correct steps, or "".
        is_chat: whether `prompt` was written by a chat template (which writes its own BOS).
        messages: in chat form, the messages before the assistant's turn.
        generation: in chat form, how many characters of `prompt` sampling would show: `messages`
            and the generation prompt. What follows them in `prompt` is the turn that the row began.
        opening: in chat form, the end of `prompt` that belongs to the assistant's turn.
    """

    prompt: str
    prefix: str
    is_chat: bool
    messages: tuple[Message, ...] = ()
    generation: int = 0
    opening: str = ""

    @property
    def is_begun(self) -> bool:
        """Whether the row itself began the turn that the response continues."""
        return bool(self.prefix) or self.generation < len(self.prompt)


@dataclass(frozen=True, kw_only=True)
class Pair(Front):
    """One preference pair as text: a context, and two responses that follow it.

    Attributes:
        margin: by how much the chosen response is better (`ReadOptions.margins`), or None.
    """

    chosen: Side
    rejected: Side
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class Solution(Front):
    """One response to learn from as it is (supervised fine-tuning), as text."""

    response: Side


@dataclass(frozen=True, kw_only=True)
class TokenizedSide:
    """One full sequence: prompt, prefix and response.

    Attributes:
        ids: (L,) int32 token ids.
        scored: (L,) bool, True for the tokens whose log-probability counts.
        weights: (L,) float32, 0 where not scored.
        eos: whether the sequence ends with a scored end-of-sequence token.
    """

    ids: np.ndarray
    scored: np.ndarray
    weights: np.ndarray
    eos: bool


@dataclass(frozen=True, kw_only=True)
class TokenizedPair:
    """A pair as ids.

    Attributes:
        shared: length of the longest common token prefix of both sequences.
        question: a number that pairs with the same prompt share; None = like no other.
        mismatched: this prompt with responses of another prompt's pair, for z0 of kto.
    """

    chosen: TokenizedSide
    rejected: TokenizedSide
    shared: int
    source: str
    row: int
    margin: float | None = None
    question: int | None = None
    mismatched: tuple[TokenizedSide, ...] = ()


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two vectors of ids."""
    shortest = min(len(a), len(b))
    differ = a[:shortest] != b[:shortest]
    first = int(differ.argmax()) if shortest else 0
    return first if shortest and differ[first] else shortest


class PairBatch(TypedDict, total=False):
    """A collated batch of B pairs: what the model reads, and T scored tokens of its sides.

    The model reads R padded rows of length L, or one row without padding (R = 1) that comes with
    its `stream`. Where several sides use one scored token (a response that is chosen, or rejected,
    in several pairs), only N < T tokens are computed, and `token_index` says which of them each of
    the T is; else N = T. `targets` and what is cached of the reference are aligned with
    `positions`, `segments` and `weights` with `token_index`: no consumer shifts anything.
    """

    input_ids: Tensor  # (R, L) int64
    attention_mask: Tensor  # (R, L) int64, 1 = real token; padded rows only
    position_ids: Tensor  # (1, L) int64; rows without padding only
    stream: Any  # Stream, or ShardedStream: who attends to whom; rows without padding only
    positions: Tensor  # (N,) int64: positions of the predicting tokens in the flattened R·L
    targets: Tensor  # (N,) int64: the tokens they predict
    token_index: Tensor  # (T,) int64: which of the N each is; only where some serve several sides
    one_sided: bool  # beside token_index: none of the N serves chosen and rejected sides
    segments: Tensor  # (T,) int64: 2i chosen of pair i in this batch, 2i + 1 rejected
    weights: Tensor  # (T,) float32
    ref_logp: Tensor  # (N,) float32, cached reference log-probs; only where precomputed
    ref_hidden: Tensor  # (N, D') cached hidden states of the reference; only where precomputed
    pair_index: Tensor  # (B,) int64: the pairs' indices in the dataset
    groups: Tensor  # (B,) int64: pairs of one choice, several rejected to one chosen, have a number
    num_groups: int  # how many there are
    margins: Tensor  # (B,) float32, what each row asks for; only where all bring one
    sides_there: tuple[int, int]  # how many chosen and how many rejected responses there are
    mismatched: Any  # a batch of single sequences: prompts with other prompts' responses (kto)
    filler: bool  # True in a batch that only keeps processes in step: its metrics do not count
    num_scored: int  # how many of the N have a weight: known here, a GPU would have to be asked
    num_tokens: int  # real tokens that the model reads
    text_tokens: int  # tokens of both sides of all pairs, a shared prefix counted twice
