"""A folder that stands in for the Hub: small models under the names that TRL's tests use.

It has the layout of huggingface_hub's cache, so that `from_pretrained` finds a name there offline,
in this process and in others, and nothing of transformers has to be replaced.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.models.miniatures import small_config
from benchmarks.trl_suite import vision
from benchmarks.trl_suite.tokenizers import tokenizer

OWNER = "trl-internal-testing"
_REVISION = "0" * 40
_DENSE = {"layer_types": ["full_attention"] * 2, "use_sliding_window": False}
# name → type of transformers, chat template, end of text, changes to the config
TEXT: dict[str, tuple[str, str | None, str, dict[str, Any]]] = {
    "tiny-Cohere2ForCausalLM": ("cohere2", "cohere2", "<|END_OF_TURN_TOKEN|>", {}),
    "tiny-Glm4MoeForCausalLM": ("glm4_moe", "glm4moe", "<|endoftext|>", {}),
    "tiny-GptOssForCausalLM": ("gpt_oss", "gptoss", "<|return|>", {}),
    "tiny-Qwen2ForCausalLM-2.5": ("qwen2", "qwen2_5", "<|im_end|>", _DENSE),
    "tiny-Qwen3MoeForCausalLM": ("qwen3_moe", "qwen3", "<|im_end|>", {}),
    "tiny-NemotronHForCausalLM-nano": ("nemotron_h", "nemotron_3_nano", "<|im_end|>", {}),
    "tiny-Olmo3ForCausalLM": ("olmo3", "qwen2_5", "<|im_end|>", {}),
    "tiny-Lfm2ForCausalLM": ("lfm2", "lfm2", "<|im_end|>", {}),
    "tiny-Lfm2ForCausalLM-2.5": ("lfm2", "lfm2_2_5", "<|im_end|>", {}),
}


def fill(cache: Path) -> dict[str, str]:
    """Makes every stand-in that can be made here.

    Args:
        cache: the folder that `HF_HUB_CACHE` will name.

    Returns:
        name → why it could not be made, of those that could not.
    """
    failed = {}
    for name, (kind, template, end, changes) in TEXT.items():
        failed |= _try(cache, name, partial(_text_model, kind, template, end, changes))
    for name in vision.MAKERS:
        failed |= _try(cache, name, partial(vision.made, name))
    failed |= _try(cache, "tiny-RemoteForCausalLM", _remote_model)
    code = _snapshot(cache, "tiny-RemoteForCausalLM")
    if code.exists():
        for module, text in _REMOTE.items():
            (code / f"{module}.py").write_text(text)
    return failed


# The code of a model that is not in transformers: `trust_remote_code` has to be said for it.
_REMOTE = {
    "configuration_remote": """from transformers import LlamaConfig


class RemoteConfig(LlamaConfig):
    model_type = "remote"
""",
    "modeling_remote": """from transformers import LlamaForCausalLM

from .configuration_remote import RemoteConfig


class RemoteForCausalLM(LlamaForCausalLM):
    config_class = RemoteConfig
""",
}


def _remote_model() -> tuple[Any, Any]:
    model, reader = _text_model("llama", "qwen2_5", "<|im_end|>", {})
    model.config.auto_map = {
        "AutoConfig": "configuration_remote.RemoteConfig",
        "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM",
    }
    model.config.__class__ = type("RemoteConfig", (type(model.config),), {"model_type": "remote"})
    model.__class__ = type("RemoteForCausalLM", (type(model),), {})
    return model, reader


def _snapshot(cache: Path, name: str) -> Path:
    return cache / f"models--{OWNER}--{name}" / "snapshots" / _REVISION


def _try(cache: Path, name: str, make: Callable[[], tuple[Any, Any]]) -> dict[str, str]:
    try:
        model, reader = make()
    except Exception as error:  # whatever a class of transformers raises; the test fails for both
        return {name: f"{type(error).__name__}: {error}"}
    snapshot = _snapshot(cache, name)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(_REVISION)
    model.save_pretrained(snapshot)
    reader.save_pretrained(snapshot)
    return {}


def _text_model(
    kind: str, template: str | None, end: str, changes: dict[str, Any]
) -> tuple[Any, Any]:
    reader = tokenizer(template, end)
    config = small_config(kind, vocab_size=len(reader), **changes)
    config.pad_token_id, config.bos_token_id = reader.pad_token_id, reader.bos_token_id
    config.eos_token_id = reader.eos_token_id
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32), reader
