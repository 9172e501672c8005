"""Which server answers at a URL, which model it serves, and whether it samples as asked."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from prefkit.errors import ConfigError
from prefkit.pairs.engines.base import Completion, Request
from prefkit.pairs.engines.server.patience import words


def normal_url(url: str) -> str:
    """With http:// and /v1, without a slash at the end.

    Raises:
        ConfigError: it is no URL.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a port that is no number, or brackets that do not close
        known = None
    if not known:
        raise ConfigError(
            f"server: {public_url(url)!r} is no URL. Write, e.g., http://127.0.0.1:8000/v1"
        )
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def public_url(url: str) -> str:
    """Without the name and password that may stand before the host: for files and messages."""
    scheme, mark, rest = url.rpartition("://") if "://" in url else ("", "", url)
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server is asked.

    Attributes:
        concurrency: most requests under way; None = 16, and 1 for `transformers serve`, whose
            seeds hold for one request at a time only.
        timeout: seconds a request may take.
        retries: how often a request is sent again that got no answer; eight are three minutes.
        api_key_env: variable that holds the server's key; it may be unset.
        extra_body: further fields of every request; they win over prefkit's.

    Raises:
        ConfigError: a concurrency below 1.
    """

    concurrency: int | None = None
    timeout: float = 600.0
    retries: int = 8
    api_key_env: str = "OPENAI_API_KEY"
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(f"concurrency is {self.concurrency}; it must be 1 or more.")


def open_client(url: str, settings: ServerSettings) -> Any:
    """An openai client without retries of its own.

    Args:
        url: up to its /v1; a name and password in it are sent in place of the key.
        settings: its timeout is that of a whole answer.

    Raises:
        ConfigError: openai is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise ConfigError(
            "server needs the package openai. Install it with: pip install 'prefkit[build]'"
        ) from error
    return openai.OpenAI(
        base_url=url,
        api_key=os.environ.get(settings.api_key_env) or "none",
        max_retries=0,
        timeout=openai.Timeout(settings.timeout, connect=10.0),
    )


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


# Warm, and of a text that says nothing.
PROBE = Request(key="probe", text="0", temperature=2.0, max_tokens=16, seed=1)
WITH_STOP = replace(PROBE, stop=("\n\n",))
# What a judge is asked like: greedily, by messages.
CHAT = replace(PROBE, text="", messages=({"role": "user", "content": "0"},), temperature=0.0)
ONE_AT_A_TIME = (
    "is `transformers serve`: one request at a time, because its seeds hold for one only "
    "(--concurrency N: more, not reproducible)."
)
NO_SEEDS = (
    "does not honour seeds: what is sampled is kept, but the same build anywhere else comes to "
    "other pairs."
)


def honours_seeds(complete: Callable[[Request], Completion], url: str) -> bool:
    """Whether the same seed gives the same text twice.

    Raises:
        ConfigError: every seed gives the same text.
    """
    texts = [complete(replace(PROBE, seed=seed)).text for seed in (1, 1, 2)]
    seed = 3
    while len(set(texts)) == 1 and seed < 7:
        texts.append(complete(replace(PROBE, seed=seed)).text)
        seed += 1
    if len(set(texts)) == 1:
        raise ConfigError(
            f"The server {url} writes the same text for every seed at temperature 2: it decodes "
            "greedily. Set do_sample in the model's generation_config.json, or give extra_body "
            "what makes it sample."
        )
    return texts[0] == texts[1]


def refuse_first_settings(complete: Callable[[Request], Completion], url: str) -> None:
    """Refuses a `transformers serve` that keeps the settings of the first request.

    Raises:
        ConfigError: it does.
    """
    cold = [replace(PROBE, seed=seed, temperature=0.0) for seed in (1, 2, 3)]
    if len({complete(request).text for request in cold}) > 1:
        raise ConfigError(
            f"The server {url} samples at temperature 0: it keeps the settings of the first "
            "request. Start `transformers serve` without --continuous-batching."
        )


def takes_stops(send: Callable[[], object]) -> bool:
    """Whether `transformers serve` can stop at a text: with tokenizers that lack some letters it
    fails.

    Args:
        send: sends `WITH_STOP`.
    """
    from openai import InternalServerError

    try:
        send()
    except InternalServerError:
        return False
    return True
