"""Loads what the local engine samples from: a causal model, with or without a PEFT adapter."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from prefkit.errors import ConfigError, ModelError

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_tokenizer(name: str, adapter: str | None = None) -> Any:
    """The tokenizer of a model or adapter folder; an adapter without one has its base model's.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    names = [adapter] if adapter else []
    names.append(name)
    if (base := _base_of(name)) is not None:
        names.append(base)
    reason = ""
    for candidate in names:
        try:
            return AutoTokenizer.from_pretrained(candidate, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = reason or str(error).strip().split("\n")[0]
    raise ModelError(f"{name}: no tokenizer can be loaded ({reason}). Name one with --tokenizer.")


def load_model(
    name: str,
    adapter: str | None,
    dtype: str,
    device: str | None,
    attn_implementation: str | None,
) -> Any:
    """The model on its device, an adapter merged into its weights.

    Args:
        name: folder or Hub name of a model or of a PEFT adapter.
        adapter: a PEFT adapter on top, or None.
        dtype, device, attn_implementation: see `LocalEngine`.

    Raises:
        ConfigError: an unknown dtype, a device that is not there, or peft is not installed.
        ModelError: the model or the adapter cannot be loaded.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}. Choose one of: {', '.join(_DTYPES)}.")
    base = _base_of(name)
    if base is not None:
        if adapter is not None:
            raise ConfigError(
                f"{name} is an adapter already, and adapter names another ({adapter}). Give the "
                "base model as model, or merge the first adapter."
            )
        name, adapter = base, name
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options: dict[str, Any] = {"dtype": _dtype(dtype, place)}
    if place == "auto":
        options["device_map"] = "auto"
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    model = _load(name, options)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    if place != "auto":
        try:
            model = model.to(place)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(
                f"device {place!r}: the model cannot be put there: {reason}"
            ) from error
    return model.requires_grad_(False)


def _dtype(given: str, place: str) -> str:
    return "float32" if given == "auto" and place == "cpu" else given


def _base_of(name: str) -> str | None:
    """The base model that an adapter's folder names; None for a model."""
    file = Path(name) / "adapter_config.json"
    if not file.is_file() or (Path(name) / "config.json").is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{file} names no base model ({error!r}). Save the adapter anew."
        ) from error
    if not base:
        raise ModelError(f"{file} names no base model. Give it as model, and {name} as adapter.")
    return base


def _load(name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, output_loading_info=True, **options
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{name}: the model cannot be loaded: {reason}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name}: its weights lack {len(missing)} tensors that its config asks for, such as "
            f"{missing[0]}, and would be random. Repair or replace the folder."
        )
    return model


def _with_adapter(model: Any, adapter: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ConfigError(
            f"{adapter} is a PEFT adapter, which needs the package peft. Install it with: "
            "pip install 'prefkit[peft]'"
        ) from error
    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{adapter}: the adapter cannot be put on the model: {reason}") from error
