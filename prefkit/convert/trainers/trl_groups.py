"""TRL's keys that are read together."""

from collections.abc import Mapping
from typing import Any

from prefkit.convert.adapters import write_targets
from prefkit.convert.draft import Draft
from prefkit.convert.loss import LossKeys, equal_sides, write_losses
from prefkit.convert.rules import Left, Refused, Rule, Same, To
from prefkit.convert.trainers.transformers_names import evaluates

_CUT = "rows whose prompt alone fills it are left out, as in TRL; here they are counted"
_EQUAL = equal_sides("TRL")
LORA = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "lora_modules_to_save",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
)
_NO_SHARES = "Make a file of the rows that you want, and name it as train_data."
_OF_4BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant")
_MIXED: Mapping[str, Any] = {"path": None, "name": None, "data_files": None, "split": "train"}
_IN_MIXTURE: dict[str, Rule] = {
    "data_dir": Refused("prefkit reads files, not a folder of a dataset", "Name data_files."),
    "columns": Left("prefkit says which columns it does not read, before anything is trained"),
    "fraction": Refused("prefkit takes whole sources", _NO_SHARES),
}
_MODEL_OPTIONS: dict[str, Rule] = {
    "dtype": To("dtype"),
    "torch_dtype": To("dtype"),
    "attn_implementation": To("attn_implementation"),
    "revision": To("revision", off=("main", None)),
    "use_cache": Left("nothing is generated"),
    "trust_remote_code": Left("set the option itself where you have read the code that it runs"),
    "low_cpu_mem_usage": Left("transformers decides"),
    "device_map": Left("the launcher places the model"),
}


def length(draft: Draft) -> None:
    longest, mode = draft["max_length"], draft["truncation_mode"]
    if longest is None:
        draft.write("max_length", {"max_length": None})
        draft.write("truncation_mode", {"equal": "skip"}, _EQUAL)
    elif mode != "keep_start":
        draft.write("max_length", {"max_length": longest, "equal": "skip"}, _EQUAL)
        remedy = "Remove it, and say what becomes of longer rows with too_long."
        draft.refuse("truncation_mode", f"prefkit cuts no beginnings ({mode})", remedy)
    else:
        draft.write("max_length", {"max_length": longest})
        options = {"too_long": "truncate_end", "empty": "skip", "equal": "skip"}
        draft.write("truncation_mode", options, f"{_CUT}; {_EQUAL}")


def adapter(draft: Draft) -> None:
    targets, on = "lora_target_modules", bool(draft["use_peft"])
    draft.write("use_peft", {"adapter": "lora" if on else "none"})
    for key in LORA:
        value = draft[key]
        if not on:
            draft.leave(key, "there is no adapter (use_peft)")
        elif value is None or value is False:
            draft.leave(key, "it is off")
        elif key in _OF_4BIT and not draft["load_in_4bit"]:
            draft.leave(key, "there are no weights of 4 bits (load_in_4bit)")
        else:
            draft.write(key, {key: value})
    if on:
        write_targets(draft, targets, draft.get("model_name_or_path"))
    else:
        draft.leave(targets, "there is no adapter (use_peft)")


def model_options(draft: Draft) -> None:
    for inner in draft.inner("model_init_kwargs", {}):
        for key in inner.open_keys():
            if (rule := _MODEL_OPTIONS.get(key)) is not None:
                rule.apply(inner, key)
            elif draft.has("model_init_kwargs"):
                inner.extend(key, "model_init_kwargs", {key: inner[key]})
            else:
                inner.refuse(key, "prefkit hands nothing else to from_pretrained", "Remove it.")


def precision(draft: Draft) -> None:
    """bf16 that is left out is on, unless fp16 is."""
    half, brain = draft["fp16"], draft["bf16"]
    draft.write("fp16", {"fp16": bool(half)})
    draft.write("bf16", {"bf16": not half if brain is None else brain})


def divergence(draft: Draft) -> None:
    said = str(draft["f_divergence_type"]).rpartition(".")[2].lower()  # an Enum's, in old files
    if said == "reverse_kl":
        draft.leave("f_divergence_type", "reverse_kl is DPO's own")
    else:
        draft.write("f_divergence_type", {"f_divergence_type": said})
    alpha = "f_alpha_divergence_coef"
    if said == "alpha_divergence":
        draft.write(alpha, {alpha: draft[alpha]})
    else:
        draft.leave(alpha, "it belongs to alpha_divergence")


def synchronisation(draft: Draft) -> None:
    on = draft["sync_ref_model"]
    Same(off=(False, None)).apply(draft, "sync_ref_model")
    for key in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
        if on:
            draft.write(key, {key: draft[key]})
        else:
            draft.leave(key, "the reference stays as it is (sync_ref_model)")


def losses(draft: Draft) -> None:
    types = draft["loss_type"]
    write_losses(draft, LossKeys())
    if "discopop" in ([types] if isinstance(types, str) else types or []):
        draft.write("discopop_tau", {"discopop_tau": draft["discopop_tau"]})
    else:
        draft.leave("discopop_tau", "it belongs to loss_type discopop")


def rpo(draft: Draft) -> None:
    value = draft["rpo_alpha"]
    if not value:
        draft.leave("rpo_alpha", "it is off")
    elif draft.has("loss_type") and draft.get("loss_type") in (None, "sigmoid", ["sigmoid"]):
        sum_of = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, value]}
        draft.write("rpo_alpha", sum_of, "nll_weight would be a mean over each pair's tokens")
    else:
        why = "TRL took its mean over the batch's tokens, prefkit takes each pair's by itself"
        draft.refuse("rpo_alpha", why, f"If that is right for you, use nll_weight: {value}.")


def dataset(draft: Draft) -> None:
    """One dataset, or a mixture, which then rules."""
    mixture = draft["datasets"]
    name, config = draft["dataset_name"], draft["dataset_config"]
    split, held_out = draft["dataset_train_split"], draft["dataset_test_split"]
    source = f"{name}:{config}" if config else name
    if mixture:
        for key in ("dataset_name", "dataset_config", "dataset_train_split"):
            draft.leave(key, "datasets rules")
        _mixture(draft)
    else:
        draft.leave("datasets", "it is empty")
        for key in ("streaming", "test_split_size"):
            draft.leave(key, "it belongs to datasets")
        if name is None:
            draft.leave("dataset_name", "it is empty")
        else:
            draft.write("dataset_name", {"train_data": source})
        draft.leave("dataset_config", "it stands behind the name" if config else "it is empty")
        draft.write("dataset_train_split", {"train_split": split})
    if evaluates(draft) and not mixture and name is not None:
        draft.write("dataset_test_split", {"eval_data": source, "eval_split": held_out})
    else:
        draft.leave("dataset_test_split", "nothing is evaluated on it")


def _mixture(draft: Draft) -> None:
    Refused("prefkit train reads rows that are in memory, shuffled").apply(draft, "streaming")
    remedy = "Split the rows yourself, and name both as train_data and eval_data."
    Refused("prefkit holds no rows out", remedy).apply(draft, "test_split_size")
    for inner in draft.inner("datasets", _MIXED):
        files, name = inner["data_files"], inner["name"]
        local = isinstance(files, str) or (isinstance(files, list) and bool(files))
        named = [files] if isinstance(files, str) else files or []
        found = named if local else [f"{inner['path']}:{name}" if name else inner["path"]]
        inner.extend("path", "train_data", found)
        if files and not local:
            inner.refuse("data_files", "it names files by split", "Name the files in a list.")
        else:
            inner.leave("data_files", "path shows what they became" if local else "it is empty")
        inner.leave("name", "it stands behind the path" if name else "it is empty")
        inner.write("split", {"train_split": inner["split"]})
        for key in inner.open_keys():
            _IN_MIXTURE.get(key, Refused("it is no key of TRL's", "Correct it.")).apply(inner, key)
