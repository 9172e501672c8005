"""LLaMA-Factory's keys that are read together."""

from typing import Any

from prefkit.convert.draft import Draft
from prefkit.convert.loss import equal_sides
from prefkit.convert.rules import Refused
from prefkit.errors import ConfigError

_TINY = 1e-6  # a weight up to this is none to LLaMA-Factory
_WITHOUT_REFERENCE = ("simpo", "orpo")
CUT = (
    "LLaMA-Factory shortens prompt and response of a longer row in proportion; here the response "
    "loses its end, and a prompt that alone is longer is an error; " + equal_sides("LLaMA-Factory")
)


def stage(draft: Draft) -> None:
    if (stage := draft["stage"]) != "dpo":
        raise ConfigError(
            f"stage is {stage!r}; prefkit train learns from pairs, as stage: dpo. (Solutions: "
            "prefkit.SupervisedTrainer. KTO: method kto, whose rows are prompt, completion and "
            "label; docs/data.md.)"
        )
    draft.leave("stage", "prefkit train learns from pairs")


def loss(draft: Draft) -> None:
    """pref_loss and its numbers; SimPO with a likelihood term is the general form of DPO."""
    name, likelihood = draft["pref_loss"], draft["pref_ftx"]
    has_likelihood = likelihood is not None and likelihood > _TINY
    if name == "simpo" and has_likelihood:
        general = {"reference_free": True, "length_normalized": True}
        draft.write("pref_loss", {"method": "dpo", **general})
    elif name in _WITHOUT_REFERENCE:
        draft.write("pref_loss", {"method": name}, is_loss=True)
    elif name == "kto_pair":
        remedy = "Choose sigmoid, hinge or ipo."
        why = "TRL has taken this loss away, and prefkit has none"
        draft.refuse("pref_loss", why, remedy, is_loss=True)
    else:
        own = {} if name == "sigmoid" else {"loss_type": name}
        draft.write("pref_loss", {"method": "dpo", **own})
    draft.write("pref_beta", {"beta": draft["pref_beta"]})
    if name == "simpo":
        draft.write("simpo_gamma", {"margin": draft["simpo_gamma"]})
    else:
        draft.leave("simpo_gamma", "it belongs to pref_loss simpo")
    if has_likelihood and name == "orpo":
        why = "ORPO has a likelihood of weight 1 already, and prefkit adds none to it"
        draft.refuse("pref_ftx", why, "Remove it for ORPO as it was published.")
    elif has_likelihood:
        draft.write("pref_ftx", {"nll_weight": likelihood})
    else:
        draft.leave("pref_ftx", "it is off")
    _smoothing(draft, name)
    _reference(draft, name)


def _smoothing(draft: Draft, name: str) -> None:
    smoothing = draft["dpo_label_smoothing"]
    if smoothing is None or smoothing <= _TINY:
        draft.leave("dpo_label_smoothing", "it is off")
    elif name == "sigmoid":
        draft.write("dpo_label_smoothing", {"label_smoothing": smoothing})
    else:
        draft.leave("dpo_label_smoothing", "LLaMA-Factory takes it with pref_loss sigmoid alone")


def _reference(draft: Draft, name: str) -> None:
    if draft["ref_model"] and name in _WITHOUT_REFERENCE:
        draft.leave("ref_model", f"{name} reads no reference")
    elif draft["ref_model"]:
        draft.write("ref_model", {"ref_model": draft["ref_model"]})
    else:
        draft.leave("ref_model", "it is empty")


def classifier(draft: Draft) -> None:
    value = draft["pref_bco_weight"]
    why = "prefkit has no loss of a classifier (BCO) with a running mean"
    Refused(why, off=(value if (value or 0) <= _TINY else None,)).apply(draft, "pref_bco_weight")


def training(draft: Draft) -> None:
    """What trains, and the dtypes: what trains is kept in fp32 unless pure_bf16 is set."""
    kind, pure, brain = draft["finetuning_type"], draft["pure_bf16"], draft["bf16"]
    half = "bfloat16" if pure or brain else "float32" if draft["fp16"] else "auto"
    if kind == "full":
        dtype = "bfloat16" if pure else "float32"
        draft.write("finetuning_type", {"adapter": "none", "dtype": dtype})
    elif kind == "lora":
        draft.write("finetuning_type", {"adapter": "lora", "dtype": half})
    else:
        remedy = "Use full or lora."
        draft.refuse("finetuning_type", f"prefkit trains all weights or a LoRA ({kind})", remedy)
    draft.leave("pure_bf16", "dtype says it" if pure else "it is off")
    for key in ("bf16", "fp16"):
        draft.write(key, {key: bool(draft[key])})
    _adapter(draft, kind == "lora")


def _adapter(draft: Draft, on: bool) -> None:
    rank, targets, more = draft["lora_rank"], draft["lora_target"], draft["additional_target"]
    targets = "all-linear" if targets == "all" else parts(targets)
    values: dict[str, dict[str, Any]] = {
        "lora_rank": {"lora_r": rank},
        "lora_alpha": {"lora_alpha": draft["lora_alpha"] or 2 * rank},
        "lora_dropout": {"lora_dropout": draft["lora_dropout"]},
        "lora_target": {"lora_target_modules": targets},
        "additional_target": {"lora_modules_to_save": parts(more)} if more else {},
        "use_rslora": {"use_rslora": True} if draft["use_rslora"] else {},
        "use_dora": {"use_dora": True} if draft["use_dora"] else {},
    }
    for key, options in values.items():
        if not on:
            draft.leave(key, "there is no LoRA (finetuning_type)")
        elif options:
            draft.write(key, options)
        else:
            draft.leave(key, "it is off")


def parts(value: Any) -> list[str]:
    """A list, or names with commas between them."""
    return [one.strip() for one in value.split(",")] if isinstance(value, str) else list(value)


def checkpointing(draft: Draft) -> None:
    on = not draft["disable_gradient_checkpointing"] or bool(draft["gradient_checkpointing"])
    draft.write("disable_gradient_checkpointing", {"gradient_checkpointing": on})
    draft.write("gradient_checkpointing", {"gradient_checkpointing": on})


def quantised(draft: Draft) -> None:
    """Bits of frozen weights; those of 4 bits have a type, and scales that may be packed too."""
    bits, kind, twice = "quantization_bit", "quantization_type", "double_quantization"
    if draft[bits] in (4, 8):
        draft.write(bits, {f"load_in_{draft[bits]}bit": True})
    else:
        Refused("prefkit loads 4 or 8 bits").apply(draft, bits)
    if draft[bits] == 4:
        draft.write(kind, {"bnb_4bit_quant_type": draft[kind] or "nf4"})
        draft.write(twice, {"use_bnb_nested_quant": bool(draft[twice])})
    else:
        draft.leave(kind, "there are no weights of 4 bits")
        draft.leave(twice, "there are no weights of 4 bits")


def thinking(draft: Draft) -> None:
    if draft["enable_thinking"] is False:
        options = {"chat_template_kwargs": {"enable_thinking": False}}
        draft.write("enable_thinking", options)
    else:
        draft.leave("enable_thinking", "the chat template's own")
