"""A run stops when evaluations fail to improve, and stops at the same place when it was resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit.cli.main import main
from prefkit.errors import ConfigError
from prefkit.train.checkpointing import checkpoint
from tests.cli.test_cli import write_rows
from tests.train.trainer_cases import ROWS, config, save_model, trainer

# The loss falls and a high one is wanted: the first evaluation is the best, the fourth the last.
STOPPING: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "early_stopping_patience": 3,
    "metric_for_best_model": "loss",
    "greater_is_better": True,
    "max_steps": 10,
    "learning_rate": 1e-3,
}


def run(folder: Path, **changes: Any) -> Any:
    return trainer(folder, eval_dataset=ROWS[:2], **{**STOPPING, **changes})


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 4),
        ({"greater_is_better": False}, 10),  # each is the best so far
        ({"greater_is_better": False, "early_stopping_threshold": 100.0}, 4),
        ({"early_stopping_patience": 1}, 2),
    ],
)
def test_it_stops_when_patience_is_at_its_end(
    changes: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    made = run(tmp_path, **changes)
    made.train()
    assert made.state.global_step == steps


def test_a_resumed_run_stops_where_it_would_have(tmp_path: Path) -> None:
    whole = run(tmp_path)
    whole.train()
    for step in (3, 4):
        checkpoint.delete(tmp_path / f"checkpoint-{step}")
    again = run(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.started_at == 2
    assert again.state.global_step == 4
    for one, two in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_stopped_run_stays_as_it_is_with_its_best_weights(tmp_path: Path) -> None:
    whole = run(tmp_path)
    whole.train()
    best = whole.state.best_model_checkpoint
    assert best is not None
    assert not best.endswith("checkpoint-4")  # what is loaded is not what was trained last
    again = run(tmp_path)
    result = again.train(resume_from_checkpoint="auto")
    assert result.global_step == 4
    for one, two in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not (tmp_path / "checkpoint-5").exists()


def test_more_patience_goes_on(tmp_path: Path) -> None:
    run(tmp_path).train()
    again = run(tmp_path, early_stopping_patience=5)
    again.train(resume_from_checkpoint="auto")
    assert again.state.global_step == 6


def test_a_second_training_counts_anew(tmp_path: Path) -> None:
    made = run(tmp_path)
    made.train()
    made.train()
    assert made.state.global_step == 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, r"needs eval_strategy .* and load_best_model_at_end: true"),
    "no best model": (
        {"eval_strategy": "epoch"},
        "needs load_best_model_at_end: true; metric_for_best_model says",
    ),
    "a threshold alone": (
        {"early_stopping_patience": None, "early_stopping_threshold": 0.1},
        "early_stopping_threshold has no effect without early_stopping_patience",
    ),
    "no patience": ({"early_stopping_patience": 0}, "early_stopping_patience is 0; it must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_is_said_before_anything(case: str, tmp_path: Path) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, **{"early_stopping_patience": 2, **changes})


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    words = ["--model", save_model(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    words += ["--train_data", rows, "--eval_data", rows, "--disable_tqdm", "true"]
    words += [x for name, value in STOPPING.items() for x in (f"--{name}", str(value))]
    assert main(["train", *words]) == 0
    assert "Trained 4 steps" in capsys.readouterr().out
