"""The server engine: any OpenAI-compatible server, asked for one text at a time by many threads.

    with closing(ServerEngine("http://127.0.0.1:8000/v1")) as engine: …

The text goes to `/v1/completions` as it is, so that a prefix can be continued on every server. A
server may be restarted in the middle: requests wait for it and are sent again with their seeds.
"""

import dataclasses
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from prefkit.files.progress import say
from prefkit.pairs.engines.base import SHORTENED, TOO_LONG, Completion, Request, unread
from prefkit.pairs.engines.server import finding
from prefkit.pairs.engines.server.finding import (
    TRANSFORMERS,
    VLLM,
    ServerSettings,
    choose_model,
    find_server,
    normal_url,
    open_client,
    public_url,
)
from prefkit.pairs.engines.server.messages import body_of, completion_of, prompt_of
from prefkit.pairs.engines.server.patience import (
    Patience,
    TooLong,
    Unfinished,
    fewer_tokens,
    is_too_long,
    words_of,
)

CONCURRENCY = 16
_Task = tuple[Request, "queue.SimpleQueue[Completion | BaseException]", threading.Event]


class ServerEngine:
    """Samples through a server.

    Args:
        url: of the server, up to its /v1; a name and password in it (http://NAME:WORD@HOST) are
            sent, and never shown.
        model: the model's name there; None = the only one it serves.
        settings: how it is asked.
        tokenizer: folder or Hub name of the model's tokenizer, read only for chat text (see
            `add_special_tokens`); None = `model`.
        add_special_tokens: sent with chat text, which holds its special tokens already. None = see
            to it that the server puts no second BOS before it: vLLM is told so, for others the
            BOS that they will put there is taken off the text.
        judges: it is asked for greedy answers to messages alone, so it need not sample, honour
            seeds or continue plain text.

    Attributes:
        kind: "vllm", "sglang", "transformers serve" or "other".
        honours_seeds: whether the same seed gave the same text twice.
        notes: requests shortened to the server's context, and prompts too long for it, which are
            answered with "" and "length".

    Raises:
        ConfigError: nobody answers there, the model is unknown, or it decodes greedily whatever
            the temperature.
    """

    window = 1
    fixed_batches = False

    def __init__(
        self,
        url: str,
        model: str | None = None,
        settings: ServerSettings | None = None,
        *,
        tokenizer: str | None = None,
        add_special_tokens: bool | None = None,
        judges: bool = False,
    ) -> None:
        settings = settings or ServerSettings()
        concurrency = settings.concurrency
        address = normal_url(url)
        self.url = public_url(address)
        self._client = open_client(address, settings)
        self._extra = dict(settings.extra_body)
        self._add_special_tokens, self._tokenizer = add_special_tokens, tokenizer
        self._patience = Patience(self.url, settings.retries)
        self.notes: Counter[str] = Counter()
        self._notes_lock = threading.Lock()
        server = find_server(self._client, self.url)
        self.kind = server.kind
        if self.kind == TRANSFORMERS:  # closes a connection after a failure, when it comes to it
            self._client = self._client.with_options(default_headers={"Connection": "close"})
        self.model = choose_model(server, model, self.url)
        self.name = f"server: {self.url}, {self.model}"
        self._leftovers = self.kind == TRANSFORMERS  # of another client, or of one that was killed
        self.lanes = concurrency or (1 if self.kind == TRANSFORMERS else CONCURRENCY)
        self._takes_stops, self._judges = True, judges
        with self._patience.short():  # before anything is sampled a broken server is told at once
            self.honours_seeds = self._probe()
        self.notes.clear()  # what the questions before a build came to
        if self.kind == TRANSFORMERS and concurrency is None:
            say(f"{self.url} {finding.ONE_AT_A_TIME}")
        if not self.honours_seeds:
            say(f"{self.url} {finding.NO_SEEDS}")
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        for _ in range(self.lanes):  # daemons: an interrupted command ends at once
            threading.Thread(target=self._work, daemon=True).start()

    def fits(self, request: Request) -> bool:
        """True: the server alone knows its context; see `notes`."""
        return True

    def batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        """One batch: every request is sent by itself."""
        return [list(requests)]

    def sample(self, batch: Sequence[Request]) -> Iterator[Completion]:
        """Completions as they come; safe to call from threads, which share the concurrency.

        Raises:
            PrefkitError: the server refuses a request, or is away for longer than the retries.
        """
        results: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()
        ended = threading.Event()
        for request in batch:
            self._tasks.put((request, results, ended))
        try:
            for _ in batch:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            ended.set()  # what is not sent yet is not sent

    def close(self) -> None:
        """Ends waiting and connections."""
        self._patience.close()
        for _ in range(self.lanes):
            self._tasks.put(None)
        self._client.close()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            request, results, ended = task
            if ended.is_set():
                continue
            try:
                results.put(self._complete(request))
            except BaseException as error:  # raised where the completion is waited for
                results.put(error)

    # -- one request --------------------------------------------------------------------------

    def _complete(self, request: Request) -> Completion:
        """A completion; "" where the server's context is too short for the prompt alone."""
        most = self._extra.get("max_tokens", request.max_tokens)
        while True:
            asked = dataclasses.replace(request, max_tokens=most)
            body = {**self._body(asked), "max_tokens": most}
            send = partial(self._send, request, body)
            try:
                completion = self._patience.call(f"request {request.key}", send)
            except TooLong as refusal:
                fewer = fewer_tokens(str(refusal), most)
                if fewer is None:
                    self._note(TOO_LONG, f"{request.key}: {refusal}")
                    return unread(request)
                most = fewer
            else:
                if most < self._extra.get("max_tokens", request.max_tokens):
                    self._note(SHORTENED, f"{request.key}, to {most} tokens")
                return completion

    def _note(self, what: str, example: str) -> None:
        """Counts it, and says so the first time."""
        with self._notes_lock:
            self.notes[what] += 1
            first = self.notes[what] == 1
        if first:
            say(f"{self.url}: {what}; the first: {' '.join(example.split())[:200]}")

    def _body(self, request: Request) -> dict[str, Any]:
        body = body_of(request, self.model, self.kind)
        if not self._takes_stops:  # the stop text is cut off here, after more was written
            body.pop("stop", None)
        if request.messages:
            body["messages"] = list(request.messages)
        else:
            body |= self._prompt(request)
        return body | self._extra

    def _send(self, request: Request, body: dict[str, Any]) -> Completion:
        """One call; two where `transformers serve` fails on it.

        `transformers serve` goes on with what it was asked for by a client that has gone, and that
        draws from the same random state. So after a failure a short request goes first: its answer
        comes when nothing is left before it.

        It also answers every failure with the same words. One that comes twice with the short
        request answered in between is not the server's: a text that passes the model's positions
        or the memory, or messages that its chat template does not take.
        """
        from openai import InternalServerError

        path = "/chat/completions" if request.messages else "/completions"
        try:
            if self._leftovers:
                self._settle()
            try:
                return completion_of(request, self._post(path, body))
            except InternalServerError as error:
                if self.kind != TRANSFORMERS or error.status_code != 500:
                    raise
            self._settle()
            try:
                return completion_of(request, self._post(path, body))
            except InternalServerError as error:
                if error.status_code != 500:
                    raise
                if request.messages:
                    raise self._patience.broken(f"request {request.key}", error) from error
                raise TooLong(words_of(error)) from error
        except Exception:
            self._leftovers = self.kind == TRANSFORMERS
            raise

    def _settle(self) -> None:
        """Waits until `transformers serve` has ended what it was asked for before."""
        self._post("/completions", self._short(finding.PROBE))
        self._leftovers = False

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The server's answer.

        Raises:
            TooLong: the server blames the length.
            Unfinished: it holds no completion.
        """
        from openai import APIStatusError

        try:
            answer = self._client.post(path, cast_to=object, body=body)
        except APIStatusError as error:
            if is_too_long(error):
                raise TooLong(words_of(error)) from error
            raise
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise Unfinished(f"no completion in the answer: {str(answer)[:200]}")
        return answer

    def _prompt(self, request: Request) -> dict[str, Any]:
        """The text; vLLM is told to put no BOS before chat text, others would put theirs."""
        is_told = self._add_special_tokens is None and self.kind == VLLM
        told = False if is_told else self._add_special_tokens
        return prompt_of(request, told, lambda: self._bos, self.url)

    @cached_property
    def _bos(self) -> str:
        """What the server's tokenizer puts before a text by itself, as text."""
        from prefkit.data.text.render import Renderer, TokenizeOptions
        from prefkit.pairs.engines.local.loading import load_tokenizer

        tokenizer = load_tokenizer(self._tokenizer or self.model)
        return tokenizer.decode(Renderer(tokenizer, TokenizeOptions()).bos)

    def _short(self, request: Request) -> dict[str, Any]:
        return {**body_of(request, self.model, self.kind), "prompt": "0"}

    # -- what the server does -----------------------------------------------------------------

    def _probe(self) -> bool:
        """Whether seeds hold; refuses a server that does not sample as asked."""
        if self._judges:
            self._complete(finding.CHAT)
            return True
        seeded = finding.honours_seeds(self._complete, self.url)
        if self.kind == TRANSFORMERS:
            body = {
                **body_of(finding.WITH_STOP, self.model, self.kind),
                "prompt": "0",
                **self._extra,
            }
            self._takes_stops = finding.takes_stops(lambda: self._post("/completions", body))
            if not self._takes_stops:
                say(f"{self.url} fails on stop texts: it writes on, and the text is cut here.")
            finding.refuse_first_settings(self._complete, self.url)
        return seeded
