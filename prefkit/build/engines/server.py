"""The server engine: any OpenAI-compatible server, asked for one text at a time by many threads.

    with closing(ServerEngine("http://127.0.0.1:8000/v1")) as engine: …

The text goes to `/v1/completions` as it is, so that a prefix can be continued on every server. A
server may be restarted in the middle: requests wait for it and are sent again with their seeds.
"""

import dataclasses
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from prefkit.build.engines.base import Completion, Request
from prefkit.build.engines.patience import Patience, Unfinished, say
from prefkit.build.engines.server_kinds import (
    TRANSFORMERS,
    VLLM,
    body_of,
    choose_model,
    find_server,
)
from prefkit.build.engines.stops import cut_at_stop
from prefkit.errors import ConfigError

CONCURRENCY = 16
# What is asked to learn how a server samples: warm, and of a text that says nothing.
_PROBE = Request(key="probe", text="0", temperature=2.0, max_tokens=16, seed=1)
_Task = tuple[Request, "queue.SimpleQueue[Completion | BaseException]", threading.Event]


class ServerEngine:
    """Samples through a server.

    Args:
        url: of the server, up to its /v1.
        model: the model's name there; None = the only one it serves.
        concurrency: most requests under way; None = 16, and 1 for `transformers serve`, whose
            seeds hold for one request at a time only.
        timeout: seconds a request may take.
        retries: how often a request is sent again that got no answer; eight are three minutes.
        api_key_env: variable that holds the server's key; it may be unset.
        extra_body: further fields of every request; they win over prefkit's.
        tokenizer: folder or Hub name of the model's tokenizer, read only for chat text (see
            `add_special_tokens`); None = `model`.
        add_special_tokens: sent with chat text, which holds its special tokens already. None = see
            to it that the server puts no second BOS before it: vLLM is told so, for others the
            BOS that they will put there is taken off the text.

    Attributes:
        kind: "vllm", "sglang", "transformers serve" or "other".
        honours_seeds: whether the same seed gave the same text twice.

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
        *,
        concurrency: int | None = None,
        timeout: float = 600.0,
        retries: int = 8,
        api_key_env: str = "OPENAI_API_KEY",
        extra_body: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        add_special_tokens: bool | None = None,
    ) -> None:
        if concurrency is not None and concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}; it must be 1 or more.")
        self.url = _normal(url)
        self._client = _client(self.url, timeout, api_key_env)
        self._extra = dict(extra_body or {})
        self._add_special_tokens, self._tokenizer = add_special_tokens, tokenizer
        self._patience = Patience(self.url, retries)
        server = find_server(self._client, self.url)
        self.kind = server.kind
        self.model = choose_model(server, model, self.url)
        self.name = f"server: {self.url}, {self.model}"
        self._leftovers = self.kind == TRANSFORMERS  # of another client, or of one that was killed
        self.lanes = concurrency or (1 if self.kind == TRANSFORMERS else CONCURRENCY)
        self._takes_stops = True
        self.honours_seeds = self._probe()
        self._tell(concurrency)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        for _ in range(self.lanes):  # daemons: an interrupted command ends at once
            threading.Thread(target=self._work, daemon=True).start()

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
        body = body_of(request, self.model, self.kind)
        if not self._takes_stops:  # the stop text is cut off here, after more was written
            body.pop("stop", None)
        if request.messages:
            body["messages"] = list(request.messages)
        else:
            body |= self._prompt(request)
        body |= self._extra
        return self._patience.call(f"request {request.key}", lambda: self._send(request, body))

    def _send(self, request: Request, body: dict[str, Any]) -> Completion:
        """One call.

        `transformers serve` goes on with what it was asked for by a client that has gone, and that
        draws from the same random state. So after a failure a request of one token goes first: its
        answer comes when nothing is left before it.
        """
        try:
            if self._leftovers:
                self._post(
                    "/completions", {**body_of(_PROBE, self.model, self.kind), "prompt": "0"}
                )
                self._leftovers = False
            path = "/chat/completions" if request.messages else "/completions"
            return _completion(request, self._post(path, body))
        except Exception:
            self._leftovers = self.kind == TRANSFORMERS
            raise

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._client.post(path, cast_to=object, body=body)
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise Unfinished(f"no completion in the answer: {str(answer)[:200]}")
        return answer

    def _prompt(self, request: Request) -> dict[str, Any]:
        """The text, and what keeps a second BOS away."""
        if not request.is_chat:
            return {"prompt": request.text}
        if self._add_special_tokens is not None:
            return {"prompt": request.text, "add_special_tokens": self._add_special_tokens}
        if self.kind == VLLM:
            return {"prompt": request.text, "add_special_tokens": False}
        if not request.text.startswith(self._bos):
            raise ConfigError(
                f"Request {request.key}: its chat text does not begin with {self._bos!r}, which "
                f"the server {self.url} would put there. Use vLLM, or give add_special_tokens: "
                "false if this server takes it."
            )
        return {"prompt": request.text.removeprefix(self._bos)}

    @cached_property
    def _bos(self) -> str:
        """What the server's tokenizer puts before a text by itself, as text."""
        from prefkit.build.engines.local_model import load_tokenizer
        from prefkit.data.render import Renderer, TokenizeOptions

        tokenizer = load_tokenizer(self._tokenizer or self.model)
        return tokenizer.decode(Renderer(tokenizer, TokenizeOptions()).bos)

    # -- what the server does -----------------------------------------------------------------

    def _probe(self) -> bool:
        """Whether seeds hold; refuses a server that does not sample as asked."""
        texts = [self._complete(dataclasses.replace(_PROBE, seed=s)).text for s in (1, 1, 2)]
        seed = 3
        while len(set(texts)) == 1 and seed < 7:
            texts.append(self._complete(dataclasses.replace(_PROBE, seed=seed)).text)
            seed += 1
        if len(set(texts)) == 1:
            raise ConfigError(
                f"The server {self.url} writes the same text for every seed at temperature 2: it "
                "decodes greedily. Set do_sample in the model's generation_config.json, or give "
                "extra_body what makes it sample."
            )
        if self.kind == TRANSFORMERS:
            self._takes_stops = self._stops()
            cold = [dataclasses.replace(_PROBE, seed=s, temperature=0.0) for s in (1, 2, 3)]
            if len({self._complete(request).text for request in cold}) > 1:
                raise ConfigError(
                    f"The server {self.url} samples at temperature 0: it keeps the settings of the "
                    "first request. Start `transformers serve` without --continuous-batching."
                )
        return texts[0] == texts[1]

    def _stops(self) -> bool:
        """Whether `transformers serve` can stop at a text: with tokenizers that lack some letters
        it fails."""
        from openai import InternalServerError

        body = body_of(dataclasses.replace(_PROBE, stop=("\n\n",)), self.model, self.kind)
        try:
            self._post("/completions", {**body, "prompt": _PROBE.text, **self._extra})
        except InternalServerError:
            say(f"{self.url} fails on stop texts: it writes on, and the text is cut here.")
            return False
        return True

    def _tell(self, concurrency: int | None) -> None:
        if self.kind == TRANSFORMERS and concurrency is None:
            say(
                f"{self.url} is `transformers serve`: one request at a time, because its seeds "
                "hold for one only (--concurrency N: more, not reproducible)."
            )
        if not self.honours_seeds:
            say(
                f"{self.url} does not honour seeds: what is sampled is kept, but the same build "
                "anywhere else comes to other pairs."
            )


def _normal(url: str) -> str:
    """With http:// and /v1, without a slash at the end."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"server: {url!r} is no URL. Write, e.g., http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _client(url: str, timeout: float, api_key_env: str) -> Any:
    try:
        import openai
    except ImportError as error:
        raise ConfigError(
            "server needs the package openai. Install it with: pip install 'prefkit[build]'"
        ) from error
    return openai.OpenAI(
        base_url=url,
        api_key=os.environ.get(api_key_env) or "none",
        max_retries=0,
        timeout=openai.Timeout(timeout, connect=10.0),
    )


def _completion(request: Request, answer: dict[str, Any]) -> Completion:
    """A server's answer, with any stop text cut off.

    Raises:
        Unfinished: the server broke off.
    """
    choice = answer["choices"][0]
    text = choice["message"].get("content") if request.messages else choice.get("text")
    reason = choice.get("finish_reason")
    if reason == "abort":  # vLLM and SGLang, shutting down
        raise Unfinished("the server aborted the request")
    text, stopped = cut_at_stop(text or "", request.stop)
    matched = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM's, SGLang's
    finish: Any = "end" if reason in ("stop", "eos", None) else "length"
    if stopped or (finish == "end" and matched in request.stop):
        finish = "stop"
    tokens = (answer.get("usage") or {}).get("completion_tokens") or 0
    return Completion(key=request.key, text=text, finish=finish, tokens=int(tokens))
