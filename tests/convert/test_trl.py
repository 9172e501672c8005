"""TRL's configs: names, defaults, and a run that is TRL's own step by step."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefkit.cli.main import main
from prefkit.convert.trainers.trl import DEFAULTS
from prefkit.errors import ConfigError
from prefkit.options.option import default_of
from tests.convert.convert_cases import (
    COMMAND,
    left,
    options,
    refused,
    translated,
)
from tests.train.trainer_cases import ROWS, byte_tokenizer, save_model, tiny_model

trl = pytest.importorskip("trl", reason="its dataclasses have the defaults")
CLASSES = (trl.DPOConfig, trl.ModelConfig, trl.ScriptArguments, trl.DatasetMixtureConfig)
FIELDS = {field.name: field for cls in CLASSES for field in dataclasses.fields(cls)}
# Where prefkit's default differs on purpose, and nothing else is learnt.
ADAPTER = {"use_peft": True, "lora_target_modules": ["a"]}
NOT_LEARNT = {"logging_nan_inf_filter", "remove_unused_columns", "pad_to_multiple_of", "output_dir"}


def same(ours: Any, theirs: Any) -> bool:
    """One value in a list is the value."""
    return (ours if not isinstance(theirs, list) or isinstance(ours, list) else [ours]) == theirs


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_of_the_table_are_trls(name: str) -> None:
    assert same(DEFAULTS[name], default_of(FIELDS[name]))


def test_every_default_that_differs_from_prefkits_is_in_the_table() -> None:
    for name, field in FIELDS.items():
        if name in COMMAND.fields and name not in DEFAULTS and name not in NOT_LEARNT:
            assert default_of(COMMAND.fields[name][0]) == default_of(field), name


def test_defaults_are_written_out() -> None:
    found = options("trl")
    assert found == {
        "model": "m",
        "train_data": "d",
        "bf16": True,
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 8,
        "beta": 0.1,
        "max_length": 1024,
        "too_long": "truncate_end",
        "empty": "skip",
        "equal": "skip",
    }
    kinds = {line.key: line.kind for line in translated("trl").lines}
    assert kinds.pop("model_name_or_path") == kinds.pop("dataset_name") == "translated"
    assert {*kinds.values()} == {"default"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"dtype": None}, {"dtype": "auto"}),
        ({"model_init_kwargs": {"dtype": "bfloat16", "use_cache": False}}, {"dtype": "bfloat16"}),
        (
            {"model_init_kwargs": '{"attn_implementation": "eager"}'},
            {"attn_implementation": "eager"},
        ),
        ({"fp16": True}, {"fp16": True, "bf16": None}),
        ({"bf16": False}, {"bf16": False}),
        ({"max_length": None}, {"max_length": None, "too_long": None, "equal": "skip"}),
        ({"prefkit_method": "dpo", "append_eos": "auto"}, {"method": None}),
        (
            {"prefkit_method": "tdpo2", "prefkit_alpha": 0.7, "prefkit_layout": "shared"},
            {"method": "tdpo2", "alpha": 0.7, "layout": "shared"},
        ),
        (
            {"prefkit_layout": "padded", "prefkit_memory_budget": 1000},
            {"layout": None, "memory_budget": 1000},
        ),
        ({"bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}, {"load_in_4bit": None}),
        ({"loss_type": "hinge"}, {"loss_type": "hinge"}),
        ({"loss_type": ["ipo"], "loss_weights": [1.0]}, {"loss_type": "ipo"}),
        (
            {"loss_type": ["robust"], "label_smoothing": 0.1},
            {"loss_type": "robust", "label_smoothing": 0.1},
        ),
        ({"loss_type": "sigmoid_norm"}, {"loss_type": "sigmoid_norm"}),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]},
        ),
        ({"rpo_alpha": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        ({"use_peft": False, "lora_r": 8}, {"adapter": "none", "lora_r": None}),
        (
            {"use_peft": True, "lora_target_modules": ["all-linear"]},
            {
                "adapter": "lora",
                "lora_dropout": 0.05,
                "lora_target_modules": "all-linear",
                "lora_r": None,
            },
        ),
        (
            {"evaluation_strategy": "no", "eval_steps": 5},
            {"eval_strategy": "no", "eval_steps": None},
        ),
        (
            {"eval_strategy": "steps", "eval_steps": 5, "dataset_config": "en"},
            {"train_data": "d:en", "eval_data": "d:en", "eval_split": None, "eval_steps": 5},
        ),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"warmup_ratio": 0.1, "warmup_steps": 7}, {"warmup_steps": 7}),
        ({"dataset_train_split": "train_prefs"}, {"train_split": "train_prefs"}),
        (
            {"datasets": [{"path": "a"}, {"path": "b", "name": "en"}]},
            {"train_data": ["a", "b:en"], "train_split": None},
        ),
        (
            {"datasets": [{"path": "json", "data_files": ["a.jsonl", "b.jsonl"]}]},
            {"train_data": ["a.jsonl", "b.jsonl"]},
        ),
        ({"group_by_length": False}, {"train_sampling_strategy": "random"}),
        ({"average_tokens_across_devices": False, "eval_do_concat_batches": False}, {}),
        ({"f_divergence_type": "FDivergenceType.REVERSE_KL"}, {"f_divergence_type": None}),
    ],
)
def test_keys_become_options(config: dict[str, Any], expected: dict[str, Any]) -> None:
    """None: the option is not written."""
    found = options("trl", **config)
    for name, value in expected.items():
        if value is None and name != "max_length":
            assert name not in found, name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        ({"loss_type": "sigmoid", "label_smoothing": 0.1}, "label_smoothing", "conservative DPO"),
        (
            {"loss_type": ["sigmoid", "robust"], "label_smoothing": 0.1},
            "label_smoothing",
            "TRL smooths robust and not sigmoid",
        ),
        (
            {"loss_type": ["aot", "sigmoid_norm"], "label_smoothing": 0.1},
            "label_smoothing",
            "prefkit smooths both",
        ),
        ({"append_eos": "never"}, "append_eos", "a column append_eos"),
        ({"prefkit_methd": "tdpo2"}, "prefkit_methd", "no such key"),
        ({"rpo_alpha": 1.0, "loss_type": "ipo"}, "rpo_alpha", "use nll_weight: 1.0"),
        ({"max_prompt_length": 512}, "max_prompt_length", "never cuts prompts"),
        ({"dataset_mixer": {"a": 1.0}}, "dataset_mixer", "datasets: [{path: NAME"),
        ({"truncation_mode": "keep_end"}, "truncation_mode", "cuts no beginnings"),
        ({"dataset_streaming": True}, "dataset_streaming", "train from Python"),
        ({"datasets": [{"path": "a", "fraction": 0.5}]}, "datasets[0].fraction", "whole sources"),
        ({"datasets": [{"path": "a", "fractoin": 1}]}, "datasets[0].fractoin", "no key of TRL"),
        (
            {"datasets": [{"path": "a"}, {"path": "b", "split": "test"}]},
            "datasets[1].split",
            "datasets[0].split means another train_split",
        ),
        ({"model_init_kwargs": {"dtype": 5}}, "model_init_kwargs.dtype", "must be one of"),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, "torch_dtype", "dtype means another"),
        ({"use_peft": True}, "lora_target_modules", "Name them"),
        ({"learning_rate": "fast"}, "learning_rate", "must be a number"),
        ({"lora_task_type": "SEQ_CLS"}, "lora_task_type", "causal language models"),
        ({"do_train": False}, "do_train", "Remove it"),
        ({"dtype": "float16"}, "dtype", "Use --dtype float32 --fp16"),
        ({"model_init_kwargs": {"dtype": "float16"}}, "model_init_kwargs.dtype", "--dtype float32"),
        ({"group_by_length": True}, "group_by_length", "saves padding"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor", "Use label_smoothing"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config", "split_batches"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers", "workers"),
        ({"eval_strategy": "steps", "datasets": [{"path": "a"}]}, "eval_strategy", "no eval_data"),
        ({"use_peft": True, "lora_target_modules": ["lm_head"]}, "lora_target_modules", "lm_head"),
        ({**ADAPTER, "sync_ref_model": True}, "sync_ref_model", "there is no model to move"),
        ({**ADAPTER, "load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit", "both on"),
    ],
)
def test_what_changes_the_training_is_refused(config: dict[str, Any], key: str, words: str) -> None:
    found = refused("trl", **config)
    assert [*found] == [key]
    assert words in found[key]


def test_what_belongs_to_a_refused_key_is_left_out() -> None:
    config = {**ADAPTER, "sync_ref_model": True, "ref_model_sync_steps": 64}
    assert [*refused("trl", **config)] == ["sync_ref_model"]
    assert "has no effect without" in left("trl", **config)["ref_model_sync_steps"]


TOGETHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one loss": ({"loss_type": "apo_zero"}, {"loss_type": "apo_zero"}),
    "losses": (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]},
    ),
    "rpo": ({"rpo_alpha": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    "discopop": ({"loss_type": "discopop", "discopop_tau": 0.1}, {"discopop_tau": 0.1}),
    "exo": (
        {"loss_type": ["exo_pair"], "label_smoothing": 0.01},
        {"loss_type": "exo_pair", "label_smoothing": 0.01},
    ),
    "weights": ({"use_weighting": True, "ld_alpha": 0.5}, {"use_weighting": True, "ld_alpha": 0.5}),
    "divergence": (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
    "reference": (
        {"sync_ref_model": True, "ref_model_sync_steps": 64},
        {"sync_ref_model": True, "ref_model_sync_steps": 64},
    ),
    "model": (
        {"model_revision": "v2", "model_init_kwargs": {"a": 1, "b": 2}},
        {"revision": "v2", "model_init_kwargs": {"a": 1, "b": 2}},
    ),
    "adapter": (
        {"load_in_4bit": True, "use_dora": True, "lora_modules_to_save": ["x"], **ADAPTER},
        {"load_in_4bit": True, "use_dora": True, "lora_modules_to_save": ["x"]},
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_keys_that_go_together_become_options(name: str) -> None:
    config, expected = TOGETHER[name]
    assert refused("trl", **config) == {}
    assert expected.items() <= options("trl", **config).items()


def test_what_has_no_part_in_learning_is_left_out() -> None:
    found = left("trl", dataset_num_proc=4, trust_remote_code=True, env={"A": 1}, lora_r=4)
    assert found["dataset_num_proc"] == "rows are read in one process"
    assert "export" in found["env"]
    assert "use_peft" in found["lora_r"]
    both = left("trl", trust_remote_code=True, model_init_kwargs={"trust_remote_code": True})
    assert all("set" in one for key, one in both.items() if "trust" in key)
    assert "has no such key" in left("trl", strange=None)["strange"]


def test_a_row_whose_sides_are_equal_does_not_stop_the_run(tmp_path: Path) -> None:
    """TRL trains on it, with a margin of 0 whatever the model does."""
    save_model(tmp_path / "model")
    (tmp_path / "rows").mkdir()
    rows = [*ROWS[:4], {**ROWS[5], "rejected": ROWS[5]["chosen"]}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows" / "train.jsonl").write_text(lines)
    config = {"model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "rows")}
    config |= {"output_dir": str(tmp_path / "out"), "max_steps": 1, "bf16": False}
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump(config | {"disable_tqdm": True}))
    assert main(["train", str(tmp_path / "trl.yaml")]) == 0


def test_layers_of_an_adapter_are_those_of_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="it has the lists")
    save_model(tmp_path / "model")
    given = {"model_name_or_path": str(tmp_path / "model"), "use_peft": True}
    assert options("trl", **given)["lora_target_modules"] == ["q_proj", "v_proj"]


def test_a_value_of_a_wrong_type_names_its_key() -> None:
    assert "no mapping" in refused("trl", datasets=5)["datasets"]
    assert "no mapping" in refused("trl", model_init_kwargs='{"a": ')["model_init_kwargs"]
    with pytest.raises(ConfigError, match=r"loss_type: 5 is nothing that TRL takes"):
        translated("trl", loss_type=5)


def test_a_converted_run_is_trls_step_by_step(tmp_path: Path) -> None:
    """One YAML, trained by TRL and by prefkit: the same losses and margins."""
    datasets = pytest.importorskip("datasets")
    save_model(tmp_path / "model")
    (tmp_path / "rows").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows" / "train.jsonl").write_text(lines)
    run = {
        "loss_type": ["robust"],
        "label_smoothing": 0.1,
        "learning_rate": 1e-3,
        "bf16": False,
        "max_steps": 3,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "warmup_steps": 0,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    config = {
        **run,
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(tmp_path / "rows"),
        "output_dir": str(tmp_path / "ours"),
    }
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(tmp_path / "trl.yaml")]) == 0
    state = json.loads((tmp_path / "ours" / "trainer_state.json").read_text())
    ours = [line for line in state["log_history"] if "loss" in line]
    trainer = trl.DPOTrainer(
        tiny_model(),
        ref_model=tiny_model(),
        args=trl.DPOConfig(output_dir=str(tmp_path / "theirs"), **run),
        train_dataset=datasets.load_dataset(str(tmp_path / "rows"))["train"],
        processing_class=byte_tokenizer(),
    )
    trainer.train()
    theirs = [line for line in trainer.state.log_history if "loss" in line]
    assert len(ours) == len(theirs) == 3
    for got, want in zip(ours, theirs, strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen", "learning_rate"):
            assert got[name] == pytest.approx(want[name], rel=3e-4, abs=3e-5), name
    assert ours[0]["loss"] != pytest.approx(ours[-1]["loss"], abs=1e-4)  # it went somewhere
