"""Models and tokenizers by name: whole, without foreign code, one line where they fail."""

import functools
import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from prefkit.errors import ModelError

logger = logging.getLogger(__name__)


NOT_CAUSAL = (
    "its type is none that AutoModelForCausalLM knows. Is it a vision-language model, train it on "
    "rows with images with prefkit.integrations.trl.DPOTrainer; on rows of text alone load it with "
    "its own class (AutoModelForImageTextToText) and give the trainer the model and its tokenizer."
)


def load_model(name: str, dtype: Any, attn_implementation: str | None = None, **more: Any) -> Any:
    """A causal language model with all its weights.

    Args:
        name: folder or Hub name.
        dtype: "auto", a dtype of torch or its name.
        attn_implementation: None = the model's default.
        more: further keywords of `from_pretrained`, such as `revision`; None = left out.

    Raises:
        ModelError: it cannot be loaded, tensors are missing that would start at random, or it is an
            adapter.
    """
    from transformers import AutoModelForCausalLM

    options = _options({"attn_implementation": attn_implementation, **more}, name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **options
        )
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        if reason.startswith("Unrecognized configuration class"):
            reason = NOT_CAUSAL
        raise ModelError(f"{name}: the model cannot be loaded: {reason}") from error
    model, info = loaded
    if getattr(model, "_hf_peft_config_loaded", False):  # all of its base would train
        raise ModelError(
            f"{name} is an adapter, not a model. Download it (hf download {name} --local-dir "
            "FOLDER) and name the folder."
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name}: its weights lack {len(missing)} tensors that its config asks for, such as "
            f"{missing[0]}, and would start at random there. Repair or replace the folder."
        )
    return model


def _options(given: dict[str, Any], name: str) -> dict[str, Any]:
    """Keywords of `from_pretrained`: code of a model's own runs only where that is asked for."""
    options = {"trust_remote_code": False}
    options |= {key: value for key, value in given.items() if value is not None}
    if options["trust_remote_code"]:
        _say_trust(name)
    return options


@functools.cache  # config, tokenizer and model of one name are loaded one after another
def _say_trust(name: str) -> None:
    logger.warning(
        "trust_remote_code is on: Python code that comes with %s runs on this machine, with all "
        "your rights.",
        name,
    )


def load_config(name: str, **more: Any) -> Any:
    """The config of a model folder or Hub name.

    Args:
        name: folder or Hub name.
        more: further keywords of `from_pretrained`, such as `revision`; None = left out.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, **_options(more, name))
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


def load_tokenizer(name: str, remedy: str = "Name one with --tokenizer.", **more: Any) -> Any:
    """The tokenizer of a model or adapter; an adapter without one has its base model's.

    Args:
        name: folder or Hub name.
        remedy: what to do where there is none.
        more: further keywords of `from_pretrained`, such as `revision`; None = left out.

    Raises:
        ModelError: there is none; `remedy` says what to do.
    """
    from transformers import AutoTokenizer

    if not (Path(name).expanduser() / "tokenizer_config.json").is_file():
        more = {**more, "revision": more.get("revision") or base_revision(name)}
        name = base_of(name) or name
    try:
        return AutoTokenizer.from_pretrained(name, **_options(more, name))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{name}: no tokenizer can be loaded ({reason}). {remedy}") from error


def check_model_folder(option: str, name: str, adapters: bool = False) -> None:
    """Refuses a folder that is not there or holds no model, before anything is loaded.

    Args:
        option: what the message names.
        name: folder or Hub name; a Hub name is not checked.
        adapters: whether a folder of an adapter of peft will do, if its base model is there.

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
            f"{option}: {name} is an adapter without its model. Merge it first: prefkit merge "
            f"{name} --out FOLDER."
        )
    base = base_of(name) or ""
    try:
        check_model_folder(option, base)
    except ModelError as error:
        raise ModelError(
            f"{option}: {name} is an adapter of {base}, and there is no model. Put the model there,"
            f" or write where it is into {name}/adapter_config.json (base_model_name_or_path)."
        ) from error


def base_of(name: str) -> str | None:
    """The base model that a folder of a peft adapter names; None for a model or a Hub name.

    Raises:
        ModelError: an adapter that names none.
    """
    if (found := _adapter_config(name)) is None:
        return None
    if not (base := found.get("base_model_name_or_path")):
        file = Path(name) / "adapter_config.json"
        raise ModelError(f"{file} names no base model. Save the adapter anew, or merge it.")
    return base


def base_revision(name: str) -> str | None:
    """Branch, tag or commit of the base model that a folder of a peft adapter belongs to.

    Returns:
        None for the main branch, for a model and for a Hub name.

    Raises:
        ModelError: its config cannot be read.
    """
    return (_adapter_config(name) or {}).get("revision")


def _adapter_config(name: str) -> dict[str, Any] | None:
    """The config of an adapter's folder; None for a model or a Hub name."""
    file = Path(name).expanduser() / "adapter_config.json"
    if not file.is_file() or file.with_name("config.json").is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{file} cannot be read ({error}). Save the adapter anew.") from error
