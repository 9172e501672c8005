"""LLaMA-Factory's configs: losses, dtypes, and data by dataset_info.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefkit.errors import ConfigError
from prefkit.loss.objectives import METHODS
from tests.convert.convert_cases import left, options, refused, translated

NAME = "llamafactory"
SHAREGPT = {"formatting": "sharegpt", "ranking": True}
COLUMNS = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
INFO: dict[str, Any] = {
    "chats": {"file_name": "chats.json", **SHAREGPT, "columns": COLUMNS},
    "alpaca": {
        "file_name": "alpaca.json",
        "ranking": True,
        "columns": {"prompt": "instruction", "query": "input", "chosen": "good"},
    },
    "orca": {
        "hf_hub_url": "Intel/orca_dpo_pairs",
        "ranking": True,
        "columns": {"prompt": "question", "chosen": "chosen", "system": "system"},
    },
    "mixed": {"hf_hub_url": "llamafactory/DPO-En-Zh-20k", "subset": "en", **SHAREGPT},
    "plain": {"hf_hub_url": "some/solutions"},
    "seen": {"file_name": "a.json", **SHAREGPT, "columns": {**COLUMNS, "images": "images"}},
    "sampled": {"file_name": "a.json", **SHAREGPT, "num_samples": 100},
    "elsewhere": {"ms_hub_url": "some/where", **SHAREGPT},
    "openai": {
        "file_name": "a.json",
        **SHAREGPT,
        "columns": {**COLUMNS, "messages": "dialogue"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user"},
    },
    "odd": {"file_name": "a.json", **SHAREGPT, "tags": {"user_tag": "person"}},
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder with dataset_info.json."""
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    return str(tmp_path)


def test_defaults_are_written_out() -> None:
    assert options(NAME) == {
        "model": "m",
        "adapter": "lora",
        "dtype": "auto",
        "lora_r": 8,
        "lora_alpha": 16,
        "gradient_checkpointing": True,
        "router_aux_loss_coef": 0.0,
        "beta": 0.1,
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 8,
        "max_length": 2048,
        "too_long": "truncate_end",
        "equal": "skip",
        "string_prompts": "chat",
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pref_loss": "hinge"}, {"method": "dpo", "loss_type": "hinge"}),
        ({"pref_loss": "ipo", "pref_beta": 0.2}, {"loss_type": "ipo", "beta": 0.2}),
        ({"dpo_label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ({"pref_ftx": 0.5}, {"nll_weight": 0.5}),
        ({"pref_loss": "simpo"}, {"method": "simpo", "beta": 0.1, "margin": 0.5}),
        (
            {"pref_loss": "simpo", "pref_ftx": 0.3, "simpo_gamma": 0.7},
            {
                "method": "dpo",
                "reference_free": True,
                "length_normalized": True,
                "margin": 0.7,
                "nll_weight": 0.3,
            },
        ),
        ({"finetuning_type": "full", "bf16": True}, {"adapter": "none", "dtype": "float32"}),
        ({"finetuning_type": "full", "pure_bf16": True}, {"dtype": "bfloat16"}),
        ({"bf16": True}, {"adapter": "lora", "dtype": "bfloat16"}),
        (
            {"lora_rank": 4, "lora_target": "q_proj,v_proj"},
            {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"]},
        ),
        (
            {"quantization_bit": 4},
            {"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_type": None},
        ),
        (
            {"quantization_bit": 4, "double_quantization": False, "quantization_type": "fp4"},
            {"use_bnb_nested_quant": False, "bnb_4bit_quant_type": "fp4"},
        ),
        ({"quantization_bit": 8}, {"load_in_8bit": True, "use_bnb_nested_quant": None}),
        *(
            ({"pref_loss": name, "dpo_label_smoothing": 0.1}, {"label_smoothing": None})
            for name in ("ipo", "hinge", "simpo", "orpo")
        ),
        ({"flash_attn": "fa2"}, {"attn_implementation": "flash_attention_2"}),
        ({"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"disable_shuffling": True}, {"train_sampling_strategy": "sequential"}),
        ({"default_system": "Be brief."}, {"system_prompt": "Be brief."}),
        ({"ref_model": "r"}, {"ref_model": "r"}),
        ({"ref_model": "r", "pref_loss": "simpo"}, {"ref_model": None}),
    ],
)
def test_keys_become_options(config: dict[str, Any], expected: dict[str, Any]) -> None:
    found = options(NAME, **config)
    for name, value in expected.items():
        assert found.get(name) == value, name


def test_simpo_with_a_likelihood_is_the_formula() -> None:
    """−log σ(βΔ − γ) of mean log-probabilities, and pref_ftx times the chosen one's NLL."""
    found = options(NAME, pref_loss="simpo", pref_ftx=0.3, pref_beta=2.0, simpo_gamma=0.7)
    built: Any = METHODS[found["method"]].build(found)
    plain: Any = METHODS["simpo"].build({"beta": 2.0, "margin": 0.7})
    assert built.nll_weight == 0.3
    assert {**vars(built), "nll_weight": 0.0} == vars(plain)


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        ({"pref_loss": "kto_pair"}, "pref_loss", "taken this loss away"),
        ({"pref_loss": "orpo", "pref_ftx": 0.3}, "pref_ftx", "a likelihood of weight 1 already"),
        ({"pref_bco_weight": 0.5}, "pref_bco_weight", "BCO"),
        ({"ld_alpha": 0.5}, "ld_alpha", "not the reference's"),
        ({"val_size": 0.1}, "val_size", "Split the rows yourself"),
        ({"finetuning_type": "freeze"}, "finetuning_type", "Use full or lora"),
        ({"template": "alpaca"}, "template", "chat_template"),
        ({"use_galore": True}, "use_galore", "Use optim"),
        ({"adapter_name_or_path": "a"}, "adapter_name_or_path", "Merge it"),
        ({"streaming": True}, "streaming", "in memory"),
        ({"mix_strategy": "interleave_under"}, "mix_strategy", "one after the other"),
        ({"rope_scaling": "yarn"}, "rope_scaling", "as it is"),
    ],
)
def test_what_changes_the_training_is_refused(config: dict[str, Any], key: str, words: str) -> None:
    found = refused(NAME, **config)
    assert [*found] == [key]
    assert words in found[key]


@pytest.mark.parametrize("stage", ["sft", "rm", "kto"])
def test_other_stages_are_no_runs_of_pairs(stage: str) -> None:
    with pytest.raises(ConfigError, match=f"stage is '{stage}'.*SupervisedTrainer"):
        translated(NAME, stage=stage)


def test_a_loss_that_is_refused_cannot_be_left_out() -> None:
    (line,) = translated(NAME, pref_loss="kto_pair").of_kind("refused")
    assert line.is_loss


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("chats", {"train_data": "{}/chats.json", "string_prompts": "chat"}),
        ("alpaca", {"train_data": "{}/alpaca.json", "columns": {"chosen": "good"}}),
        ("orca", {"train_data": "Intel/orca_dpo_pairs", "columns": {"prompt": "question"}}),
        ("mixed", {"train_data": "llamafactory/DPO-En-Zh-20k:en", "columns": None}),
        ("chats,mixed", {"train_data": ["{}/chats.json", "llamafactory/DPO-En-Zh-20k:en"]}),
        ("openai", {"columns": {"prompt": "dialogue"}}),
    ],
)
def test_datasets_are_read_as_dataset_info_says(
    dataset: str, expected: dict[str, Any], folder: str
) -> None:
    found = options(NAME, dataset=dataset, dataset_dir=folder)
    for name, value in expected.items():
        wanted = json.loads(json.dumps(value).replace("{}", folder))
        assert found.get(name) == wanted, name


def test_rows_to_evaluate_on_and_first_rows(folder: str) -> None:
    named = {"dataset": "chats", "eval_dataset": "mixed", "dataset_dir": folder, "max_samples": 9}
    found = options(NAME, **named, eval_strategy="steps")
    assert found["eval_data"] == "llamafactory/DPO-En-Zh-20k:en"
    assert found["train_split"] == "train[:9]"
    assert found["eval_split"] == "train[:9]"
    assert "eval_dataset" in left(NAME, **named)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("nobody", "does not describe nobody"),
        ("plain", "no ranking: true"),
        ("seen", "images"),
        ("sampled", "num_samples"),
        ("elsewhere", "neither a file nor on Hugging Face's Hub"),
        ("odd", "tags of its own"),
        ("chats,alpaca", "other columns or splits"),
    ],
)
def test_datasets_that_are_not_read_are_refused(dataset: str, words: str, folder: str) -> None:
    assert words in refused(NAME, dataset=dataset, dataset_dir=folder)["dataset"]


def test_no_dataset_info_says_where_to_run(tmp_path: Path) -> None:
    found = refused(NAME, dataset="chats", dataset_dir=str(tmp_path))["dataset"]
    assert "where LLaMA-Factory is run" in found
    found = refused(NAME, dataset="chats", default_system="x", dataset_dir={"chats": INFO["chats"]})
    assert [*found] == ["default_system"]  # no conversation would begin with it


def test_numbers_of_sampling_are_no_length_of_rows() -> None:
    """LLaMA-Factory's max_length bounds what is generated."""
    found = left(NAME, max_length=77, temperature=0.5)
    assert found.keys() >= {"max_length", "temperature"}
    assert options(NAME, max_length=77)["max_length"] == 2048
