"""Where a server is: its URL as written by hand, as shown to others, and a client of it."""

import os
from typing import Any
from urllib.parse import urlsplit

from prefkit.errors import ConfigError


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


def open_client(url: str, timeout: float, api_key_env: str) -> Any:
    """An openai client without retries of its own.

    Args:
        url: up to its /v1; a name and password in it are sent in place of the key.
        timeout: seconds for a whole answer.
        api_key_env: variable that holds the key; it may be unset.

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
        api_key=os.environ.get(api_key_env) or "none",
        max_retries=0,
        timeout=openai.Timeout(timeout, connect=10.0),
    )
