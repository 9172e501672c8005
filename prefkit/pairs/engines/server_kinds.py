"""What kind of server answers, what it must be sent so that it samples as asked, and its answers.

OpenAI-compatible servers agree on the request and differ in what they do beside it: vLLM and SGLang
take top_k and penalties from the model's generation config unless told otherwise, and `transformers
serve` samples only where that config says do_sample, and has one random state for all requests.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prefkit.errors import ConfigError
from prefkit.pairs.engines.base import Completion, Request
from prefkit.pairs.engines.patience import Unfinished, words
from prefkit.pairs.engines.stops import cut_at_stop

VLLM, SGLANG, TRANSFORMERS, OTHER = "vllm", "sglang", "transformers serve", "other"
_HOW_TO_START = (
    "Start one, for example with: vllm serve MODEL --port 8000, or: transformers serve MODEL "
    "--port 8000"
)


@dataclass(frozen=True)
class Server:
    """What was found at a URL.

    Attributes:
        kind: one of the names above.
        models: names it lists, in its order; () for `transformers serve`, which lists its cache
            and not what it serves.
    """

    kind: str
    models: tuple[str, ...]


def find_server(client: Any, url: str) -> Server:
    """Asks a server for its models and for what it is.

    Args:
        client: an openai client of the URL.

    Raises:
        ConfigError: nobody answers, or not as such a server does.
    """
    from openai import APIConnectionError, OpenAIError

    if _is_transformers(client):  # its list is of a cache; without a cache it gives an error
        return Server(TRANSFORMERS, ())
    try:
        listed = list(client.with_options(max_retries=2, timeout=20).models.list())
    except APIConnectionError as error:
        hint = "" if urlsplit(url).port else "The URL names no port: http://HOST:PORT is usual. "
        raise ConfigError(
            f"server: nobody answers at {url} ({words(error)}). {hint}{_HOW_TO_START}"
        ) from error
    except (OpenAIError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"server: {url}/models gives no list of models ({words(error)}). Give the URL of an "
            "OpenAI-compatible server, up to its /v1."
        ) from error
    owners = {str(getattr(model, "owned_by", "")) for model in listed}
    kind = next((kind for kind in (VLLM, SGLANG) if kind in owners), OTHER)
    return Server(kind, tuple(model.id for model in listed))


def _is_transformers(client: Any) -> bool:
    """`transformers serve` publishes its routes, some of which nobody else has."""
    from openai import OpenAIError

    address = str(client.base_url).rstrip("/").removesuffix("/v1") + "/openapi.json"
    try:
        routes = client.with_options(timeout=20).get(address, cast_to=object)
    except (OpenAIError, ValueError):
        return False
    paths = routes.get("paths", {}) if isinstance(routes, dict) else {}
    return {"/load_model", "/v1/responses", "/v1/completions"} <= set(paths)


def choose_model(server: Server, wanted: str | None, url: str) -> str:
    """The model's name in requests.

    Raises:
        ConfigError: the server does not list it, or lists several and none was named.
    """
    names = ", ".join(server.models) or "none"
    if server.kind == TRANSFORMERS:  # it says by itself what is wrong with a name
        if wanted is None:
            raise ConfigError(
                f"server_model: {url} is `transformers serve`, which does not list what it "
                "serves. Give the name that it was started with."
            )
        return wanted
    if wanted is None and len(server.models) == 1:
        return server.models[0]
    if wanted is None:
        raise ConfigError(f"server_model: {url} serves several models. Name one of: {names}.")
    if server.models and wanted not in server.models:
        raise ConfigError(
            f"server_model: {url} serves no model {wanted!r}. Name one of: {names} (vLLM names a "
            "model with --served-model-name)."
        )
    return wanted


def body_of(request: Request, model: str, kind: str) -> dict[str, Any]:
    """The JSON of a request but for its prompt: the request's settings and no others."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if kind in (VLLM, SGLANG):
        body |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    if kind == TRANSFORMERS:
        settings: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            settings = {"do_sample": True, "top_k": 0}
        settings |= {"max_new_tokens": request.max_tokens, "repetition_penalty": 1.0}
        body["generation_config"] = json.dumps(settings)
    return body


def completion_of(request: Request, answer: dict[str, Any]) -> Completion:
    """A server's answer, with any stop text cut off.

    What a reasoning model thinks stands in fields of its own (`reasoning_content`, `reasoning`, or
    parts of type "thinking") and is left there; where there is nothing else the note says so.

    Raises:
        Unfinished: the server broke off.
    """
    choice = answer["choices"][0]
    message = choice.get("message") or {}
    said = _said(message.get("content") if request.messages else choice.get("text"))
    reason = choice.get("finish_reason")
    if reason == "abort":  # vLLM and SGLang, shutting down
        raise Unfinished("the server aborted the request")
    text, stopped = cut_at_stop(said, request.stop)
    matched = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM's, SGLang's
    finish: Any = "end" if reason in ("stop", "eos", None) else "length"
    if stopped or (finish == "end" and matched in request.stop):
        finish = "stop"
    note: Any = "refused" if finish == "length" and reason != "length" else ""
    if not said and not note and _thinks(message, finish):
        note = "thought"
    tokens = (answer.get("usage") or {}).get("completion_tokens") or 0
    return Completion(key=request.key, text=text, finish=finish, tokens=int(tokens), note=note)


def _said(content: Any) -> str:
    """A message's content as text: null is none, of parts those that are text."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(str(part.get("text") or "") for part in parts)
    return content or ""


def _thinks(message: Mapping[str, Any], finish: str) -> bool:
    """Whether a message without text holds a thought, or is one that was cut off: servers that
    keep thoughts to themselves give `content: null` then and nothing else."""
    thought = any(message.get(name) for name in ("reasoning_content", "reasoning", "content"))
    return thought or ("content" in message and finish == "length")
