"""Whose config it is; every key is accounted for once, whatever is in it; hints."""

import dataclasses
import re
from collections import Counter
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.cli.config_file import OF_THE_MACHINE, checked
from prefkit.convert.draft import Draft
from prefkit.convert.engine import find_trainer, named_trainer, translate
from prefkit.convert.hints import HINTS
from prefkit.convert.report import config_file
from prefkit.convert.rules import Same
from prefkit.convert.trainers import TRAINERS
from prefkit.errors import ConfigError
from prefkit.options.parse import typed
from prefkit.train.checks.options import one_line_errors
from prefkit.train.options import make_options
from tests.convert import known_keys
from tests.convert.convert_cases import COMMAND, INHERITED, LEAST, refused, translated


def names_of(trainer: str) -> list[str]:
    """All keys that a trainer takes."""
    if trainer != "trl":
        from transformers import Seq2SeqTrainingArguments

        inherited = [field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)]
        more = known_keys.AXOLOTL if trainer == "axolotl" else known_keys.LLAMA_FACTORY
        return list(dict.fromkeys(more if trainer == "axolotl" else [*more, *inherited]))
    trl = pytest.importorskip("trl", reason="TRL's own dataclasses have its names")
    classes = (trl.DPOConfig, trl.ModelConfig, trl.ScriptArguments, trl.DatasetMixtureConfig)
    return list(dict.fromkeys(field.name for cls in classes for field in dataclasses.fields(cls)))


def told(trainer: str, config: dict[str, Any]) -> list[str]:
    """The keys that lines tell of; those within another count as that one."""
    translation = checked(translate(named_trainer(trainer), config, COMMAND, INHERITED))
    lines = [line for line in translation.lines if not line.is_default]
    assert all(line.why or line.written for line in lines)
    assert all(line.remedy for line in lines if line.kind == "refused")
    plain = [line.key for line in lines if not re.search(r"[.\[]", line.key)]
    within = {re.split(r"[.\[]", line.key)[0] for line in lines} - {*plain}
    assert len({line.key for line in lines}) == len(lines)
    return [*plain, *within]


@pytest.mark.parametrize("trainer", LEAST)
def test_every_known_key_is_accounted_for_once(trainer: str) -> None:
    """No key of the three schemas is unknown, and none falls between two rules."""
    config = {**dict.fromkeys(names_of(trainer)), **named_trainer(trainer).defaults}
    config |= LEAST[trainer]
    translation = translate(named_trainer(trainer), config, COMMAND, INHERITED)
    unknown = [line.key for line in translation.lines if "has no such key" in line.why]
    assert unknown == []
    assert Counter(told(trainer, config)) == Counter([*config])


VALUES = st.sampled_from(
    [None, True, False, 0, 1, 3, 0.5, "", "text", "a,b", [], ["a"], {}, {"a": 1}, [{"path": "a"}]]
)


@pytest.mark.parametrize("trainer", LEAST)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_values_are_accounted_for_or_refused_by_name(trainer: str, data: Any) -> None:
    names = st.sampled_from([name for name in names_of(trainer) if name not in LEAST[trainer]])
    drawn = data.draw(st.dictionaries(names, VALUES, max_size=12))
    config = {**drawn, **LEAST[trainer]}
    try:
        found = told(trainer, config)
    except ConfigError as error:  # of a type that the trainer does not take
        assert any(f"{key}: " in str(error) for key in config)  # noqa: PT017  # or it is one
        return
    assert Counter(found) == Counter([*config])


@pytest.mark.parametrize("trainer", LEAST)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_written_is_accepted(trainer: str, data: Any) -> None:
    """Whatever is refused, a config is left that prefkit train takes."""
    inherited = [name for name in names_of(trainer) if name in INHERITED or "lora" in name]
    names = st.sampled_from([name for name in inherited if name not in LEAST[trainer]])
    drawn = data.draw(st.dictionaries(names, VALUES, min_size=3, max_size=6))
    try:
        translation = translated(trainer, **drawn)
    except ConfigError:  # of a type that the trainer does not take
        return
    text = config_file(translation, "theirs.yaml")
    written = {name: typed(COMMAND, name, one) for name, one in yaml.safe_load(text).items()}
    with one_line_errors():
        make_options(
            {name: one for name, one in written.items() if name not in OF_THE_MACHINE},
            needs_data=False,
        )


def test_a_key_is_accounted_for_once_or_it_is_a_bug() -> None:
    draft = Draft({"beta": 0.1}, {}, COMMAND)
    draft.write("beta", {"beta": 0.1})
    with pytest.raises(KeyError):
        draft.leave("beta", "twice")


def test_a_name_that_is_no_key_is_refused() -> None:
    assert "Did you mean 'learning_rate'?" in refused("trl", learning_rat=1)["learning_rat"]
    assert "Correct or remove it" in refused("axolotl", xyzzy=1)["xyzzy"]


@pytest.mark.parametrize(
    ("config", "trainer"),
    [
        ({"model_name_or_path": "m", "dataset_name": "d", "beta": 0.1}, "trl"),
        ({"model_name_or_path": "m", "datasets": [{"path": "d"}], "dataset_config": "c"}, "trl"),
        ({"model_name_or_path": "m", "stage": "dpo", "dataset": "d", "bf16": True}, "llamafactory"),
        ({"model_name_or_path": "m", "template": "qwen", "cutoff_len": 5}, "llamafactory"),
        ({"base_model": "m", "rl": "dpo", "datasets": [], "adapter": "lora"}, "axolotl"),
        ({"model": "m", "train_data": "d", "model_name_or_path": "m", "dataset_name": "d"}, None),
        ({"model": "m", "loss_type": "ipo", "dataset_name": "d"}, None),
        ({"learning_rate": 1e-6, "output_dir": "o", "fsdp": True}, None),
        ({"model_name_or_path": "m", "learning_rate": 1e-6}, None),  # TRL's or LLaMA-Factory's
        ({"dataset_name": "d", "max_steps": 2}, None),
        ({}, None),
    ],
)
def test_the_trainer_is_told_by_its_names(config: dict[str, Any], trainer: str | None) -> None:
    found = find_trainer(config, COMMAND.fields, INHERITED)
    assert (found and found.trainer.name) == trainer
    if found:
        assert {*found.keys} <= {*config}


def test_hints_say_what_to_use() -> None:
    assert HINTS["torch_dtype"] == "It is TRL's name. Use dtype."
    assert HINTS["model_name_or_path"] == "It is TRL's name. Use model."
    assert "nll_weight" in HINTS["rpo_alpha"]
    assert "ref_model" in HINTS["ref_model_init_kwargs"]
    assert HINTS["cutoff_len"] == "It is LLaMA-Factory's name. Use max_length, and too_long."
    assert HINTS["micro_batch_size"].startswith("It is axolotl's name. Use per_device_train_batch")
    assert HINTS["warmup_ratio"].startswith("Use warmup_steps")
    for name, hint in HINTS.items():
        assert hint.endswith("."), name


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda one: one.name)
def test_hints_and_rules_name_options_that_exist(trainer: Any) -> None:
    """`To("x")` names an option, and `Same` is one."""
    for key, rule in trainer.rules.items():
        option = key if isinstance(rule, Same) else getattr(rule, "option", None)
        if option is not None:
            assert option in COMMAND.fields, key
