"""An adapter of PEFT merged into its base model: a model folder that needs no PEFT any more."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prefkit.errors import ConfigError, ModelError
from prefkit.files.atomic import check_writable, fsync_path
from prefkit.model.adapters import put_adapter
from prefkit.model.loading import (
    base_of,
    base_revision,
    check_model_folder,
    load_config,
    load_model,
    load_tokenizer,
)

logger = logging.getLogger(__name__)


def merge(
    adapter: str,
    out: str,
    base_model: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    say: Callable[[str], None] = logger.info,
) -> None:
    """Writes a model, its tokenizer and its chat template into a new folder, all of it or nothing.

    Args:
        adapter: folder of an adapter.
        out: the folder to make.
        base_model: folder or Hub name of its base model; None = the one that it names, in the
            revision that it names.
        dtype: number format in which is merged and saved: "auto" (the base model's), "float32",
            "bfloat16" or "float16". A base that is stored quantised is dequantised first.
        trust_remote_code: see `load_model`.
        say: receives lines that say what was done.

    Raises:
        ModelError: no adapter, no base model, or two that do not fit.
        ConfigError: `out` exists or cannot be written; peft is not installed.
    """
    base = _base(adapter, base_model)
    target = Path(out).expanduser()
    if target.exists() or target.is_symlink():
        raise ConfigError(f"out: {out} exists already. Name a folder that does not.")
    check_writable(target.parent, "out")
    revision = base_revision(adapter) if base == base_of(adapter) else None
    own: dict[str, Any] = {"trust_remote_code": trust_remote_code or None, "revision": revision}
    quantised = getattr(load_config(base, **own), "quantization_config", None) is not None
    model = _unquantised(base, dtype, own) if quantised else load_model(base, dtype, **own)
    which = f"{base} at {revision}" if revision else base
    say(f"Base     {which}: {_count(model)} parameters, {str(model.dtype).removeprefix('torch.')}")
    adapted = put_adapter(model, adapter)
    say(f"Adapter  {adapter}: {_described(adapted)}, {_megabytes(Path(adapter), 'adapter_model*')}")
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{adapter}: PEFT cannot merge this adapter: {reason}") from error
    if _untied(merged):
        say("         Embeddings and head, which the base model ties, were trained apart: untied")
    tokenizer = _tokenizer(adapter, base, own)
    # Names of weights go back to those of the family's files, but not what unpacked them.
    _save(merged, tokenizer, target, save_original_format=not quantised)
    template = bool(getattr(tokenizer, "chat_template", None))
    words = "without a tokenizer: there is none" if tokenizer is None else "with the tokenizer"
    words += " and its chat template" if template else ""
    say(f"Merged   {out}: {_megabytes(target, '*.safetensors')}, {words}")


def _base(adapter: str, base_model: str | None) -> str:
    if not Path(adapter).expanduser().is_dir():
        raise ModelError(f"There is no folder {adapter}. Name the folder of an adapter.")
    if not (Path(adapter).expanduser() / "adapter_config.json").is_file():
        raise ModelError(
            f"{adapter} is no folder of an adapter: it holds no adapter_config.json. Name one that "
            "`prefkit train --adapter lora` or PEFT saved."
        )
    if base_model is None:
        check_model_folder("ADAPTER", adapter, adapters=True)
        return base_of(adapter) or ""
    check_model_folder("base_model", base_model)
    return base_model


def _unquantised(base: str, dtype: str, own: dict[str, Any]) -> Any:
    """A model that is stored quantised, in one floating dtype."""
    model = load_model(base, dtype, device_map={"": "cpu"}, **own)
    try:
        model = model.dequantize()
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{base} is stored quantised, and its weights cannot be unpacked: {error}. Give the "
            "unquantised model as base_model."
        ) from error
    return model if dtype == "auto" else model.to(getattr(torch, dtype))


def _untied(model: Any) -> bool:
    """Unties embeddings and head in the config where training made two of them."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    embeddings = model.get_input_embeddings()
    if not config.tie_word_embeddings or head is None or head.weight is embeddings.weight:
        return False
    if torch.equal(head.weight, embeddings.weight):
        model.tie_weights()
        return False
    for one in (config, model.config):
        one.tie_word_embeddings = False
    return True


def _tokenizer(adapter: str, base: str, own: dict[str, Any]) -> Any:
    """The tokenizer that the adapter was trained with; None where there is none."""
    has_own = (Path(adapter).expanduser() / "tokenizer_config.json").is_file()
    try:
        return load_tokenizer(adapter if has_own else base, **own)
    except ModelError:
        if has_own:
            raise
        return None


def _save(model: Any, tokenizer: Any, target: Path, **options: Any) -> None:
    """Everything beside the target first, then its name: no half folder is ever seen."""
    scratch = target.with_name(f".{target.name}.merging")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        model.save_pretrained(scratch, **options)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        for path in scratch.rglob("*"):
            fsync_path(path)
        os.rename(scratch, target)
    except OSError as error:
        raise ConfigError(f"out: {target} cannot be written ({error}).") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    fsync_path(target.parent)


def _count(model: Any) -> str:
    return f"{sum(value.numel() for value in model.parameters()):,}"


def _described(model: Any) -> str:
    """An adapter in words: its kind, its rank, the modules that were trained in full."""
    config = next(iter(model.peft_config.values()))
    kind = config.peft_type.value
    kind = "DoRA" if getattr(config, "use_dora", False) else {"LORA": "LoRA"}.get(kind, kind)
    layers = sum(hasattr(part, "base_layer") for part in model.modules())
    rank = f" of rank {config.r}" if getattr(config, "r", None) else ""
    full = getattr(config, "modules_to_save", None)
    return f"{kind}{rank} on {layers} layers" + (f", {', '.join(full)} in full" if full else "")


def _megabytes(folder: Path, pattern: str) -> str:
    size = sum(path.stat().st_size for path in folder.expanduser().glob(pattern))
    return f"{size / 1e6:,.1f} MB"
