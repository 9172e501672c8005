"""prefkit's keys in axolotl's YAML, and which of axolotl's keys they cannot stand beside.

axolotl makes one pydantic model of its own keys and its plugins'. What cannot work is refused while
it reads the file, before rows and models are loaded.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

_PREFIX = "prefkit_"
_TRAINED = ("dpo", "ipo")  # what axolotl's `rl` may be


class PrefkitArgs(BaseModel):
    """What prefkit adds to axolotl's config; a key that is left out has the default of TRL's room.

    Raises:
        ValueError: see `_refusals`, as pydantic's ValidationError.
    """

    prefkit_method: Literal["dpo", "tdpo1", "tdpo2"] | None = Field(
        default=None,
        description="dpo (rl and dpo_loss_type name the loss), or token-level DPO with the "
        "full-vocabulary KL (arXiv 2404.11999), tdpo1 or tdpo2. None = dpo.",
    )
    prefkit_alpha: float | None = Field(
        default=None, ge=0, description="Weight of the sequential KL term of tdpo2. None = 0.5."
    )
    prefkit_append_eos: Literal["auto", "always", "never"] | None = Field(
        default=None,
        description="Which completions of plain text get an end-of-sequence token: auto (all but "
        "those of rows with a prefix, which are steps), always (as without prefkit) or never. "
        "None = auto.",
    )
    prefkit_layout: Literal["auto", "shared", "padded"] | None = Field(
        default=None,
        description="What the models read: shared (a pair as one row without padding, its common "
        "prefix once), padded (as without prefkit) or auto (shared where the models can). "
        "None = auto.",
    )
    prefkit_memory_budget: int | None = Field(
        default=None,
        ge=1,
        description="Bytes for buffers of logits in the fused head. None = a sensible default.",
    )

    @model_validator(mode="before")
    @classmethod
    def refuse_what_cannot_work(cls, data: Any) -> Any:
        """Looks at the whole file: axolotl's keys are beside these."""
        for words in _refusals(data):
            raise ValueError(words)
        return data


KEYS = tuple(PrefkitArgs.model_fields)

# Keys of axolotl's that cannot be on, or above 1, beside the plugin, and the words of the refusal.
_NOT_BESIDE = {
    "dpo_use_liger_kernel": "dpo_use_liger_kernel and prefkit's plugin each replace the head and "
    "the loss. Remove one of the two.",
    "context_parallel_size": "prefkit's plugin reads whole rows, and context_parallel_size splits "
    "them over processes. Set it to 1, or remove the plugin; prefkit train has "
    "sequence_parallel_size.",
    "tensor_parallel_size": "prefkit's plugin needs the whole head, and tensor_parallel_size "
    "splits it. Set it to 1 (fsdp_version: 2 shards, too), or remove the plugin.",
}
# Keys of axolotl's that change a loss which tdpo1 and tdpo2 are not.
_OF_OTHER_LOSSES = ("dpo_loss_weights", "dpo_use_weighting", "dpo_label_smoothing")


def settings_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says of `prefkit.integrations.trl.config.Settings`, by its fields."""
    given = {key: cfg.get(key) for key in KEYS}
    return {key.removeprefix(_PREFIX): value for key, value in given.items() if value is not None}


def _refusals(data: Mapping[str, Any]) -> Iterator[str]:
    """Why axolotl cannot train with what a file says, in words, the first reason first."""
    for key in data:
        if key.startswith("prefkit") and key not in KEYS:
            yield _unknown(key)
    if data.get("rl") not in _TRAINED:
        yield (
            "prefkit's plugin is for DPO. Set rl: dpo (or rl: ipo), or remove "
            "prefkit.integrations.axolotl.PrefkitPlugin from plugins."
        )
    for key, words in _NOT_BESIDE.items():
        value = data.get(key)
        if value is True or (value or 0) > 1:
            yield words
    method = data.get("prefkit_method")
    if data.get("prefkit_alpha") is not None and method != "tdpo2":
        yield "prefkit_alpha is read by prefkit_method: tdpo2 alone. Set that, or remove the alpha."
    if method in ("tdpo1", "tdpo2"):
        yield from _refusals_of_token_level(method, data)


def _refusals_of_token_level(method: str, data: Mapping[str, Any]) -> Iterator[str]:
    if data.get("rl") == "ipo":
        yield f"prefkit_method: {method} is a loss of its own. Set rl: dpo with it."
    if data.get("dpo_loss_type") not in (None, ["sigmoid"]):
        yield f"prefkit_method: {method} is a loss of its own. Leave dpo_loss_type out."
    for key in _OF_OTHER_LOSSES:
        if data.get(key):
            yield f"prefkit_method: {method} is a loss of its own, without {key}. Leave one out."
    if data.get("precompute_ref_log_probs"):
        yield (
            f"prefkit_method: {method} has a KL, which needs the reference's whole distribution: "
            "precompute_ref_log_probs cannot be had with it. Leave one out."
        )


def _unknown(key: str) -> str:
    names = [known.removeprefix(_PREFIX) for known in KEYS]
    if near := get_close_matches(key.removeprefix(_PREFIX), names, n=1):
        return f"{key} is not a key of prefkit's. Did you mean {_PREFIX}{near[0]}?"
    return (
        f"{key} is not a key of prefkit's: they are {', '.join(KEYS)}. What switches prefkit on is "
        "its line in plugins."
    )
