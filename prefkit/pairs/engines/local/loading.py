"""Loads what the local engine samples from, a model with or without a PEFT adapter; its end ids."""

from pathlib import Path
from typing import Any

import torch

from prefkit.data.pair import Front
from prefkit.data.text.render import Renderer
from prefkit.errors import ConfigError, ModelError, PrefkitError
from prefkit.model import loading
from prefkit.model.adapters import put_adapter

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_tokenizer(name: str, adapter: str | None = None) -> Any:
    """The tokenizer of a model or adapter folder; an adapter without one has its base model's.

    Raises:
        ModelError: there is none.
    """
    if adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file():
        return loading.load_tokenizer(adapter)
    return loading.load_tokenizer(name)


def load_model(
    name: str, adapter: str | None, dtype: str, device: str | None, attn_implementation: str | None
) -> Any:
    """The model on its device, an adapter merged into its weights.

    Args:
        name: folder or Hub name of a model, or folder of a PEFT adapter.
        adapter: folder or Hub name of a PEFT adapter on top, or None.
        dtype, device, attn_implementation: see `LocalEngine`.

    Raises:
        ConfigError: an unknown dtype, a device that is not there, or peft is not installed.
        ModelError: the model or the adapter cannot be loaded.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}. Choose one of: {', '.join(_DTYPES)}.")
    base, revision = loading.base_of(name), None
    if base is not None:
        if adapter is not None:
            raise ConfigError(
                f"{name} is an adapter already, and adapter names another ({adapter}). Give the "
                "base model as model, or merge the first adapter."
            )
        name, adapter, revision = base, name, loading.base_revision(name)
    index = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto" and index == "cpu":
        dtype = "float32"
    model = loading.load_model(name, dtype, attn_implementation, revision=revision)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    try:
        model = model.to(index)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"device {index!r} cannot hold the model: {reason}") from error
    return model.requires_grad_(False)


def _with_adapter(model: Any, adapter: str) -> Any:
    try:
        return put_adapter(model, adapter).merge_and_unload()
    except (ValueError, RuntimeError) as error:
        if isinstance(error, PrefkitError):
            raise
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{adapter}: the adapter cannot be merged: {reason}") from error


def end_ids_of(model: Any, renderer: Renderer) -> set[int]:
    """What ends a text: the generation config's ids, the tokenizer's, and its template's."""
    ends: Any = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = model.config.get_text_config().eos_token_id
    ends = [*ends] if isinstance(ends, list | tuple) else [ends]
    eos = renderer.tokenizer.eos_token_id
    if eos is not None and getattr(renderer.tokenizer, "chat_template", None):
        front = Front(prompt="", prefix="", append_eos=True, source="engine", row=0)
        ends.append(renderer.end_id(front, is_chat=True))
    return {end for end in (*ends, eos) if end is not None}
