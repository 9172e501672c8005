"""Models and tokenizers by name: whole, without foreign code, one line where they fail."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from prefkit.errors import ModelError


def load_model(name: str, dtype: Any, attn_implementation: str | None = None) -> Any:
    """A causal language model with all its weights.

    Args:
        name: folder or Hub name.
        dtype: "auto", a dtype of torch or its name.
        attn_implementation: None = the model's default.

    Raises:
        ModelError: it cannot be loaded, or tensors are missing that would start at random.
    """
    from transformers import AutoModelForCausalLM

    options = {"attn_implementation": attn_implementation}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            **{key: value for key, value in options.items() if value},
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{name}: the model cannot be loaded: {reason}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name}: its weights lack {len(missing)} tensors that its config asks for, such as "
            f"{missing[0]}, and would start at random there. Repair or replace the folder."
        )
    return model


def load_config(name: str) -> Any:
    """The config of a model folder or Hub name.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        remedy = "" if Path(name).exists() else " Give a local folder, or check name and network."
        raise ModelError(f"{name}: its config cannot be loaded: {reason}{remedy}") from error


def positions_of(text_config: Any) -> int | None:
    """Tokens of the longest sequence that a model has positions for; None = no limit.

    Args:
        text_config: of the text model. XLNet's says -1 for no limit, others say nothing.
    """
    found = getattr(text_config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def load_tokenizer(name: str, remedy: str = "Name one with --tokenizer.") -> Any:
    """The tokenizer of a model folder or Hub name.

    Raises:
        ModelError: there is none; `remedy` says what to do.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{name}: no tokenizer can be loaded ({reason}). {remedy}") from error


def check_model_folder(option: str, name: str, adapters: bool = False) -> None:
    """Refuses a folder that is not there or holds no model, before anything is loaded.

    Args:
        option: what the message names.
        name: folder or Hub name; a Hub name is not checked.
        adapters: whether a folder of an adapter of peft will do.

    Raises:
        ModelError: see above.
    """
    folder = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if not folder.exists():
        if looks_local:
            raise ModelError(f"{option}: there is no folder {name}.")
        return  # a Hub name
    if (folder / "config.json").is_file():
        return
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{option}: {name} holds no config.json, so it is not a model folder.")
    if not adapters:
        raise ModelError(
            f"{option}: {name} is an adapter without its model. Merge it first "
            "(merge_and_unload, save_pretrained), then train the merged model."
        )


def base_of(name: str) -> str | None:
    """The base model that a folder of a peft adapter names; None for a model or a Hub name.

    Raises:
        ModelError: an adapter that names none.
    """
    file = Path(name).expanduser() / "adapter_config.json"
    if not file.is_file() or file.with_name("config.json").is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{file} cannot be read ({error}). Save the adapter anew.") from error
    if not base:
        raise ModelError(f"{file} names no base model. Save the adapter anew, or merge it.")
    return base
