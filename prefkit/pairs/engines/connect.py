"""The engine behind a model's name: loaded here, or reached through a server."""

from collections.abc import Collection, Mapping
from typing import Any

from prefkit.pairs.engines.base import Engine


def connect(
    model: str,
    *,
    server: str | None = None,
    server_model: str | None = None,
    tokenizer: str | None = None,
    adapter: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    batch_size: int = 32,
    concurrency: int | None = None,
    timeout: float = 600.0,
    retries: int = 8,
    extra_body: Mapping[str, Any] | None = None,
    add_special_tokens: bool | None = None,
    end_ids: Collection[int] = (),
    judges: bool = False,
) -> Engine:
    """A local engine, or with `server` a server engine.

    Args:
        model: folder or Hub name; with a server only its tokenizer is read, and only for chat text.
        server: URL of an OpenAI-compatible server.
        server_model: the model's name there; None = the only one it serves.
        others: see `LocalEngine` and `ServerEngine`.

    Raises:
        ConfigError, ModelError: the model cannot be loaded, or the server not be used.
    """
    if server is not None:
        from prefkit.pairs.engines.server import ServerEngine

        return ServerEngine(
            server,
            server_model,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            extra_body=extra_body,
            tokenizer=tokenizer or model,
            add_special_tokens=add_special_tokens,
            judges=judges,
        )
    from prefkit.pairs.engines.local import LocalEngine

    return LocalEngine(
        model,
        tokenizer=tokenizer,
        adapter=adapter,
        dtype=dtype,
        device=device,
        attn_implementation=attn_implementation,
        batch_size=batch_size,
        end_ids=end_ids,
    )
