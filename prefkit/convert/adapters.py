"""What the trainers share about LoRA adapters: which layers get one where none are named."""

import json
from pathlib import Path

from prefkit.convert.draft import Draft

_NAME_THEM = "Name them: lora_target_modules: [q_proj, v_proj], or all-linear."


def write_targets(draft: Draft, key: str, model: str | None) -> None:
    """The layers of an adapter; null means those that PEFT has for the model's type."""
    named = draft[key]
    if named is not None:
        whole = named == ["all-linear"]  # peft reads it as a word, not in a list
        draft.write(key, {"lora_target_modules": "all-linear" if whole else named})
        return
    try:
        kind, modules = _of_peft(model)
    except (ImportError, OSError, ValueError, KeyError) as error:
        why = f"PEFT has a list for each model type, and it cannot be looked up ({error})"
        draft.refuse(key, " ".join(why.split()), _NAME_THEM)
        return
    if modules is None:
        draft.refuse(key, f"PEFT has no list for a model of type {kind}", _NAME_THEM)
        return
    draft.write(key, {"lora_target_modules": modules}, f"PEFT's for {kind}")


def _of_peft(model: str | None) -> tuple[str, list[str] | None]:
    """The model's type, and the layers that PEFT adapts in it unless told otherwise.

    Raises:
        ImportError, OSError, ValueError, KeyError: no PEFT, or no config of the model to be had.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LISTS

    if model is None:
        raise ValueError("no model is named")
    file = Path(model).expanduser() / "config.json"
    if file.is_file():
        kind = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    else:
        from transformers import AutoConfig

        kind = AutoConfig.from_pretrained(model, trust_remote_code=False).model_type
    found = LISTS.get(kind)
    return kind, None if found is None else list(found)
