"""Whole training steps equal trl.DPOTrainer's: loss, metrics, gradient norm, weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.trainer_cases import (
    ROWS,
    byte_tokenizer,
    logs_of,
    run_options,
    tiny_model,
    trainer,
)

trl = pytest.importorskip("trl", reason="trl is the one to compare with")
datasets = pytest.importorskip("datasets")

SAME = (
    "loss",
    "grad_norm",
    "learning_rate",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "num_tokens",
)
# Means over tokens: TRL's are of each batch, ours of all tokens since the last line.
OF_TOKENS = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")
LINKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({}, {}),
    "ipo": ({"link": "ipo"}, {"loss_type": ["ipo"]}),
    "robust": (
        {"link": "robust", "label_smoothing": 0.1},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
    ),
    "hinge": ({"link": "hinge"}, {"loss_type": ["hinge"]}),
    "length-normalised": ({"length_normalized": True}, {"loss_type": ["sigmoid_norm"]}),
    "several": 2 * ({"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1]},),
    "weighted pairs": 2 * ({"loss_type": ["apo_zero"], "use_weighting": True},),
}


def train_with_trl(folder: Path, family: str, model: Any = None, **changes: Any) -> Any:
    """A trained `trl.DPOTrainer`, of a tiny model or of `model`, which is its own reference."""
    options: dict[str, Any] = {
        **run_options(folder),
        "report_to": "none",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
    }
    trained = trl.DPOTrainer(
        tiny_model(family, scale=3.0) if model is None else model,
        ref_model=tiny_model(family, scale=3.0) if model is None else None,
        peft_config=changes.pop("peft_config", None),
        args=trl.DPOConfig(**{**options, **changes}),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=byte_tokenizer(),
    )
    trained.train()
    return trained


def compare(ours: Any, theirs: Any, names: tuple[str, ...] = (*SAME, *OF_TOKENS)) -> None:
    mine, other = logs_of(ours, "rewards/chosen"), logs_of(theirs, "rewards/chosen")
    assert len(mine) == len(other) == 4
    for step, (got, want) in enumerate(zip(mine, other, strict=True)):
        rel, tiny = (1e-5, 2e-6) if step == 0 else (3e-4, 3e-5)  # Adam amplifies rounding later
        for name in names:
            assert got[name] == pytest.approx(want[name], rel=rel, abs=tiny), (step, name)
    assert abs(mine[-1]["rewards/margins"]) > 1e-3  # the runs went somewhere
    for ours_p, theirs_p in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(ours_p, theirs_p, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("link", LINKS)
def test_training_equals_trl(link: str, tmp_path: Path) -> None:
    mine, theirs = LINKS[link]
    ours = trainer(tmp_path / "ours", tiny_model(scale=3.0), log_entropy=True, **mine)
    ours.train()
    assert any(line["mean_token_accuracy"] > 0 for line in logs_of(ours))
    compare(ours, train_with_trl(tmp_path / "trl", "llama", **theirs))


@pytest.mark.parametrize("family", ["llama-tied", "gemma2"])
def test_other_heads_equal_trl(family: str, tmp_path: Path) -> None:
    ours = trainer(tmp_path / "ours", tiny_model(family, scale=3.0), log_entropy=True)
    ours.train()
    compare(ours, train_with_trl(tmp_path / "trl", family))


def test_accumulation_equals_trl(tmp_path: Path) -> None:
    small: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    ours = trainer(tmp_path / "ours", tiny_model(scale=3.0), **small)
    ours.train()
    compare(ours, train_with_trl(tmp_path / "trl", "llama", **small), SAME)
