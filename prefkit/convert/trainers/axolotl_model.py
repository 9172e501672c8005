"""axolotl's keys about the model that are read together: dtypes, adapter, attention, tokens."""

from typing import Any

from prefkit.convert.adapters import write_targets
from prefkit.convert.draft import Draft
from prefkit.convert.rules import Refused

LORA = {
    "lora_r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_modules_to_save": "lora_modules_to_save",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
}
# Of bitsandbytes → option.
_PACKED = {
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
    "bnb_4bit_quant_type": "bnb_4bit_quant_type",
    "bnb_4bit_compute_dtype": "bnb_4bit_compute_dtype",
}
# Attention by its own switch → attn_implementation.
ATTENTION = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
    "flex_attention": "flex_attention",
}


def precision(draft: Draft) -> None:
    """bf16 is auto unless said otherwise; weights are loaded in what is computed in."""
    brain, half = draft["bf16"], bool(draft["fp16"] or draft["float16"])
    whole = brain == "full"
    on = bool(brain or draft["bfloat16"]) and not (half and brain == "auto")
    options: dict[str, Any] = {"dtype": "bfloat16" if on else "float32", "bf16": on and not whole}
    options |= {"bf16_full_eval": True} if whole else {}
    why = "auto is on where the GPU has it" if brain == "auto" and on else ""
    draft.write("bf16", options, why)
    draft.leave("bfloat16", "dtype says it")
    if half and not on:
        why = "axolotl loads float16 weights; here they are float32, computed in float16"
        draft.write("fp16", {"fp16": True}, why)
    else:
        draft.leave("fp16", "bf16 rules" if half else "it is off")
    draft.leave("float16", "fp16 says it" if half else "it is off")
    if draft["tf32"] is True:
        draft.write("tf32", {"tf32": True})
    else:
        draft.leave("tf32", "it is off, or the machine's")


def adapter(draft: Draft) -> None:
    kind, all_linear = draft["adapter"], bool(draft["lora_target_linear"])
    on = kind in ("lora", "qlora")
    if kind is None or on:
        draft.write("adapter", {"adapter": "lora" if on else "none"})
    else:
        draft.refuse("adapter", f"prefkit trains all weights or a LoRA ({kind})", "Use lora.")
    for key, name in LORA.items():
        value = draft[key]
        if not on:
            draft.leave(key, "there is no LoRA (adapter)")
        elif key in ("lora_r", "lora_alpha") and value is None:
            draft.refuse(key, "axolotl has no value of its own for it", "Give it.")
        elif not value and key != "lora_dropout":
            draft.leave(key, "it is off")
        elif key == "load_in_4bit" and kind != "qlora":
            draft.leave(key, "axolotl reads it with adapter: qlora")
        elif key != "load_in_4bit":
            draft.write(key, {name: value})
    _packed(draft, kind == "qlora" and bool(draft["load_in_4bit"]))
    if not on:
        for key in ("lora_target_linear", "lora_target_modules"):
            draft.leave(key, "there is no LoRA (adapter)")
    elif all_linear:
        draft.write("lora_target_linear", {"lora_target_modules": "all-linear"})
        draft.leave("lora_target_modules", "all linear layers are among them")
    else:
        draft.leave("lora_target_linear", "it is off")
        write_targets(draft, "lora_target_modules", draft.get("base_model"))


def _packed(draft: Draft, on: bool) -> None:
    """Weights of 4 bits: their scales are packed too, unless bnb_config_kwargs says otherwise."""
    given = draft["bnb_config_kwargs"] or {}
    if not on:
        draft.leave("bnb_config_kwargs", "there are no weights of 4 bits (adapter: qlora)")
        return
    nested = bool(given.get("bnb_4bit_use_double_quant", True))
    draft.write("load_in_4bit", {"load_in_4bit": True, "use_bnb_nested_quant": nested})
    for inner in draft.inner("bnb_config_kwargs", {}):
        for key in inner.open_keys():
            if (name := _PACKED.get(key)) is not None:
                inner.write(key, {name: inner[key]})
            else:
                Refused("prefkit has no option for it").apply(inner, key)


def attention(draft: Draft) -> None:
    for key, name in ATTENTION.items():
        if draft[key]:
            draft.write(key, {"attn_implementation": name})
        else:
            draft.leave(key, "it is off")


def checkpointing(draft: Draft) -> None:
    value, offloaded = draft["gradient_checkpointing"], draft["activation_offloading"]
    why = "" if isinstance(value, bool) else "nothing is offloaded"
    on = bool(value or offloaded)
    draft.write("gradient_checkpointing", {"gradient_checkpointing": on}, why)
    draft.leave(
        "activation_offloading", "it saves memory alone; prefkit recomputes" if offloaded else "off"
    )


def special_tokens(draft: Draft) -> None:
    for inner in draft.inner("special_tokens", {}):
        for key in inner.open_keys():
            if key == "pad_token" or not inner[key]:
                inner.leave(key, "padding is no part of the loss" if inner[key] else "it is empty")
            else:
                remedy = "Remove it where the tokenizer has it already; else save one that has it."
                inner.refuse(key, "prefkit changes no tokenizer", remedy)
