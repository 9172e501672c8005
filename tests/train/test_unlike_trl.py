"""Which defaults differ from TRL's is said once, truly, and only of what was left out."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from prefkit.cli.train import load_options
from prefkit.train import unlike_trl as told
from prefkit.train.fields import PreferenceFields
from prefkit.train.unlike_trl import unlike_trl
from tests.train.trainer_cases import config, tiny_model, trainer

ALL = ["no gradient checkpointing", "float32", "batch 4", "no max_length"]
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing given": ({}, ALL),
    "checkpointing": ({"gradient_checkpointing": True}, ALL[1:]),
    "bf16": ({"bf16": True}, [ALL[0], *ALL[2:]]),
    "batch": ({"per_device_train_batch_size": 16}, [*ALL[:2], ALL[3]]),
    "packed": ({"tokens_per_batch": 512}, [*ALL[:2], ALL[3]]),
    "length": ({"max_length": 2048}, ALL[:3]),
}


def found(args: Any, weights: torch.dtype = torch.float32) -> list[str]:
    return unlike_trl(args, "bf16" if args.bf16 else "no", weights)


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_out_is_told(case: str, tmp_path: Path) -> None:
    changes, words = CASES[case]
    options = dict(changes) if changes else {}
    left = {"per_device_train_batch_size": 4, "gradient_checkpointing": None}
    assert found(config(tmp_path, **{**left, **options})) == words


def test_the_command_line_knows_what_was_given() -> None:
    def of(*flags: str) -> list[str]:
        return found(load_options(["--model", "m", "--train_data", "x", *flags]).config)

    assert of() == ALL
    assert of("--per_device_train_batch_size", "4", "--max_length", "none") == ALL[:2]
    assert of("--bf16", "false", "--gradient_checkpointing", "false") == ALL[2:]
    assert of("--dtype", "float32") == [ALL[0], *ALL[2:]]


def test_weights_in_bfloat16_are_no_float32(tmp_path: Path) -> None:
    assert "float32" not in found(config(tmp_path), torch.bfloat16)


def test_it_is_one_line_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told._say.cache_clear()
    with caplog.at_level(logging.WARNING, "prefkit.train.unlike_trl"):
        trainer(tmp_path / "one", tiny_model(), gradient_checkpointing=None)
        trainer(tmp_path / "two", tiny_model(), gradient_checkpointing=None)
    lines = [record.message for record in caplog.records]
    assert lines == [f"Unlike TRL's defaults: {', '.join(ALL)}."]


def test_trls_defaults_are_still_those_of_the_table() -> None:
    """And no other default of a run that both know differs without a word here."""
    trl = pytest.importorskip("trl", reason="trl is the one to compare with")
    theirs = {field.name: field.default for field in dataclasses.fields(trl.DPOConfig)}
    assert theirs["gradient_checkpointing"] is True
    assert theirs["bf16"] is None  # which becomes true where fp16 is not asked for
    assert theirs["per_device_train_batch_size"] == 8
    assert theirs["max_length"] == 1024
    of_trainer = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    ours = of_trainer | vars(PreferenceFields())
    # Of paths and of words that mean the same; label smoothing, beta and margins are the methods'.
    same = {"output_dir", "label_smoothing", "beta", "remove_unused_columns", "loss_weights"}
    same |= {"pad_to_multiple_of", "logging_nan_inf_filter", "loss_type"}  # None: method and link
    differ = {
        name
        for name, value in theirs.items()
        if name in ours and ours[name] != value and name not in (*same, *told.NAMES)
    }
    assert differ == set()
