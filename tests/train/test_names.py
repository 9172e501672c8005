"""Names that a config or a trainer does not have: one error that says what to use."""

import copy
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from prefkit import PreferenceConfig, PreferenceTrainer, SupervisedConfig, SupervisedTrainer
from prefkit.errors import ConfigError

CONFIGS = (PreferenceConfig, SupervisedConfig)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("max_prompt_length", r"TRL's name\. .*use max_length"),
        ("rpo_alpha", r"TRL's name\. Use nll_weight"),
        ("torch_dtype", r"Use model_init_kwargs=\{'dtype'"),
        ("load_in_4bit", r"quantization_config=BitsAndBytesConfig"),
        ("lora_r", r"peft_config=LoraConfig"),
        ("lora_rank", r"peft_config=LoraConfig"),
        ("template", r"LLaMA-Factory's name\. Use string_prompts"),
        ("adapter_name_or_path", r"Use model: the adapter's folder"),
        ("lr", r"Use learning_rate"),
        ("dataset_num_proc", r"TRL's name\. Leave it out: rows are read in one process"),
        ("ref_model_init_kwargs", r"TRL's name\. Use ref_model"),
        ("pref_beta", r"LLaMA-Factory's name"),
        ("sequence_len", r"axolotl's name\. Use max_length"),
        ("warmup_ratio", r"Use warmup_steps"),
        ("model", r"option of `prefkit train`"),
        ("dtype", r"Use model_init_kwargs=\{'dtype'"),
        ("bta", r"Did you mean 'beta'\?"),
        ("head_schedule", r"called 'head_passes' now"),
        ("xyzzy", r"\.$"),
    ],
)
def test_an_option_that_is_none_says_what_to_use(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"PreferenceConfig has no argument '{name}'.*{words}"):
        PreferenceConfig(**{name: 1})


@pytest.mark.parametrize("cls", CONFIGS)
def test_the_first_argument_is_the_folder(cls: Any, tmp_path: Path) -> None:
    """As of transformers' and TRL's configs; a dataclass would take it for another field."""
    assert cls("out").output_dir == cls(output_dir="out").output_dir == "out"
    assert cls(tmp_path, learning_rate=1e-4).output_dir == str(tmp_path)
    assert cls("out").num_train_epochs == 3
    first = next(iter(inspect.signature(cls).parameters.values()))
    assert first.name == "output_dir"


@pytest.mark.parametrize("cls", CONFIGS)
@pytest.mark.parametrize("places", [("out", 1e-4), (1e-4,), (None,)])
def test_nothing_else_is_given_by_place(cls: Any, places: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match=r"one argument by its place, output_dir; got"):
        cls(*places)
    with pytest.raises(ConfigError, match="output_dir twice"):
        cls("out", output_dir="out")


def test_a_config_is_still_a_dataclass() -> None:
    config = PreferenceConfig("out", beta=0.2)
    assert dataclasses.replace(config, beta=0.3).beta == 0.3
    assert copy.deepcopy(config).beta == 0.2

    @dataclasses.dataclass(kw_only=True)
    class Mine(PreferenceConfig):
        more: int = 3

    assert Mine(output_dir="out", more=4).more == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tokenizer", r"Use processing_class\."),
        ("max_length", r"pass args=\w+Config\(max_length=…\)"),
        ("learning_rate", r"pass args=\w+Config\(learning_rate=…\)"),
        ("preprocess_logits_for_metrics", "never forms them"),
        ("train_datset", r"Did you mean 'train_dataset'\?"),
    ],
)
@pytest.mark.parametrize("cls", [PreferenceTrainer, SupervisedTrainer])
def test_an_argument_that_is_none_says_what_to_use(cls: Any, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{cls.__name__} has no argument '{name}'. .*{words}"):
        cls("model", **{name: 1})


def test_arguments_of_trls_trainer_are_known() -> None:
    """Each argument of DPOTrainer is one of ours, or there is a word about it."""
    trl = pytest.importorskip("trl", reason="its trainer has the arguments")
    ours = {*inspect.signature(PreferenceTrainer).parameters}
    for name in inspect.signature(trl.DPOTrainer).parameters:
        if name not in ours:
            with pytest.raises(ConfigError, match=rf"'{name}'\. [A-Z]"):
                PreferenceTrainer("model", **{name: 1})
