"""What samples text for a build: the small interface behind which a model or a server stands.

A build never asks for "some text": every request has a key of its own, all settings and a seed, so
that an answer can be kept, found again after a crash, and asked for again with the same outcome.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be continued, once.

    Attributes:
        key: unique in a build and the same in every run of it: "QUESTION/stage/number".
        text: all that the model reads, as one string; in chat form the template is applied.
        messages: for a judge, in place of `text`: chat messages ({"role", "content"}), which the
            engine itself puts into its model's chat form.
        role: who is asked: the model that learns, or the judge.
        is_chat: a chat template wrote `text`, with its own special tokens: none are added.
        temperature: of the sampling; 0 = greedy.
        top_p: nucleus; 1 = the whole distribution. There is never a top-k.
        max_tokens: most tokens to write.
        stop: texts after which to stop; a stop text itself is not part of the completion.
        seed: of this request alone: what else is sampled beside it changes nothing.
    """

    key: str
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()
    role: Literal["model", "judge"] = "model"
    is_chat: bool = False
    temperature: float
    top_p: float = 1.0
    max_tokens: int
    stop: tuple[str, ...] = ()
    seed: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What was written for a request.

    Attributes:
        key: the request's.
        text: without the end-of-sequence token and without the stop text.
        finish: "end" = the model ended it, "stop" = a stop text came, "length" = max_tokens; a
            server that does not tell the first two apart gives "end" for both.
        tokens: tokens written, the end-of-sequence token included.
        note: what `text` and `finish` alone do not say: "thought" = the server gave no text, all
            that was written is a thought that it keeps apart; "unread" = the prompt is too long for
            the model, nothing was written; "refused" = the server ended the text for a reason of
            its own (a content filter), whatever the limit.
    """

    key: str
    text: str
    finish: Literal["end", "stop", "length"]
    tokens: int
    note: Literal["", "thought", "unread", "refused"] = ""


# What engines note.
SHORTENED = "requests shortened to the context"
TOO_LONG = "prompts too long for the server"


class Engine(Protocol):
    """Samples completions.

    Attributes:
        name: what it is, for the manifest ("transformers: FOLDER", "server: URL, MODEL").
        lanes: how many questions' stages may run beside each other, in threads.
        window: how many questions a lane takes at a time, so that their requests fill batches.
        fixed_batches: what a text becomes may depend, by rounding, on the texts beside it: of a
            batch that a crash left half done all is sampled again, so that the outcome is the same.
        notes: what was done to requests other than they asked for, and how often in this run.
    """

    name: str
    lanes: int
    window: int
    fixed_batches: bool
    notes: Counter[str]

    def fits(self, request: Request) -> bool:
        """Whether the model can read the prompt and write a token behind it.

        True where only a server knows: it answers what it cannot read with "" and "length".

        Raises:
            ConfigError: messages that the model's chat template does not take.
        """
        ...

    def batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        """The requests in the batches they run in, which depend on the requests alone.

        Raises:
            ConfigError: a request that does not fit.
        """
        ...

    def sample(self, batch: Sequence[Request]) -> Iterator[Completion]:
        """The completions of one batch, as they finish, in any order; safe to call from threads.

        Raises:
            PrefkitError: the model or the server cannot do it, after every retry.
        """
        ...

    def close(self) -> None:
        """Frees model and connections; no call is possible afterwards."""
        ...


def unread(request: Request) -> Completion:
    """What a request comes to whose prompt is too long for the model: nothing, unfinished."""
    return Completion(key=request.key, text="", finish="length", tokens=0, note="unread")


def seed_of(base: int, key: str) -> int:
    """The seed of a request: 31 bits of SHA-256 of the build's seed and the request's key."""
    digest = hashlib.sha256(f"{base}/{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop text, and whether there was one."""
    indices = [index for stop in stops if (index := text.find(stop)) >= 0]
    return (text[: min(indices)], True) if indices else (text, False)
