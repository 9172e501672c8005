"""What a server is sent so that it samples as asked, and how its answers are read.

OpenAI-compatible servers agree on the request and differ in what they do beside it: vLLM and SGLang
take top_k and penalties from the model's generation config unless told otherwise, and `transformers
serve` samples only where that config says do_sample, and has one random state for all requests.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from prefkit.errors import ConfigError
from prefkit.pairs.engines.base import Completion, Request, cut_at_stop
from prefkit.pairs.engines.server.finding import SGLANG, TRANSFORMERS, VLLM
from prefkit.pairs.engines.server.patience import Unfinished


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


def prompt_of(
    request: Request, add_special_tokens: bool | None, bos: Callable[[], str], url: str
) -> dict[str, Any]:
    """The text, and what keeps a second BOS away.

    Args:
        request: with a text.
        add_special_tokens: is sent with chat text; None = the server is not told, and puts its BOS.
        bos: gives what the server's tokenizer puts before a text by itself.
        url: of the server, for messages.

    Raises:
        ConfigError: chat text without the BOS that would be taken off.
    """
    if not request.is_chat:
        return {"prompt": request.text}
    if add_special_tokens is not None:
        return {"prompt": request.text, "add_special_tokens": add_special_tokens}
    if not request.text.startswith(bos()):
        raise ConfigError(
            f"Request {request.key}: its chat text does not begin with {bos()!r}, which the server "
            f"{url} would put there. Use vLLM, or give add_special_tokens: false if this server "
            "takes it."
        )
    return {"prompt": request.text.removeprefix(bos())}


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
