"""The best model's metric: one that an evaluation makes, or a refusal before any training."""

from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerCallback

from prefkit import PreferenceTrainer
from prefkit.cli.train import load_options
from prefkit.errors import ConfigError
from tests.train import test_supervised
from tests.train.trainer_cases import ROWS, byte_tokenizer, config, tiny_model, trainer

EVALUATING = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
BEST = {**EVALUATING, "load_best_model_at_end": True, "max_steps": 1}
SETS = {"easy": ROWS[:2], "hard": ROWS[2:4]}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "default of several sets": (
        {"eval_dataset": SETS},
        r"is loss \(the default\).*eval_loss. Each evaluation set.*eval_easy_loss",
    ),
    "nearest first": (
        {"metric_for_best_model": "rewards/margin"},
        r"makes eval_rewards/margin. Choose one of: eval_rewards/margins, ",
    ),
    "another method's": (
        {"metric_for_best_model": "eval_kl/chosen", "greater_is_better": False},
        "no evaluation of this run makes eval_kl/chosen",
    ),
    "an entropy that is not logged": (
        {"metric_for_best_model": "entropy", "greater_is_better": True},
        "no evaluation of this run makes eval_entropy",
    ),
    "a set that is not there": (
        {"metric_for_best_model": "eval_esay_loss", "eval_dataset": SETS},
        "Choose one of: eval_easy_loss, ",
    ),
    "high or low": ({"metric_for_best_model": "rewards/rejected"}, "greater_is_better"),
    "logits high or low": ({"metric_for_best_model": "logits/chosen"}, "greater_is_better"),
    "no evaluation": ({"eval_strategy": "no", "eval_steps": None}, "no effect without evaluation"),
    "a direction of nothing": (
        {"eval_strategy": "no", "eval_steps": None, "greater_is_better": False}
        | {"load_best_model_at_end": False},
        "greater_is_better has no effect without evaluation",
    ),
    "best of nothing": (
        {"load_best_model_at_end": False, "save_strategy": "best"},
        "Say which one with metric_for_best_model",
    ),
    "steps of an epoch": ({"eval_strategy": "epoch"}, "eval_steps has no effect"),
    "nothing to stop by": (
        {"load_best_model_at_end": False, "callbacks": [EarlyStoppingCallback]},
        "EarlyStoppingCallback watches a metric",
    ),
    "plateaus": (
        {**EVALUATING, "lr_scheduler_type": "reduce_lr_on_plateau", "eval_dataset": SETS},
        "is loss .the default.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_evaluation_makes_is_refused(case: str, tmp_path: Path) -> None:
    changes, said = REFUSED[case]
    options = {**BEST, "eval_dataset": ROWS[:2], **changes}
    with pytest.raises(ConfigError, match=said):
        # The rows are never looked at: a bad one would be the error.
        trainer(tmp_path, model="no/such/model", rows=[{}], **options)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "eval_loss"),
        ({"metric_for_best_model": "rewards/margins"}, "eval_rewards/margins"),
        (
            {"metric_for_best_model": "eval_hard_logps/chosen", "eval_dataset": SETS},
            "eval_hard_logps/chosen",
        ),
        (
            {"method": "tdpo2", "metric_for_best_model": "kl/chosen", "greater_is_better": False},
            "eval_kl/chosen",
        ),
        ({"nll_weight": 1.0, "metric_for_best_model": "nll_loss"}, "eval_nll_loss"),
        ({"metric_for_best_model": "mean_token_accuracy"}, "eval_mean_token_accuracy"),
        (
            {"log_entropy": True, "metric_for_best_model": "entropy", "greater_is_better": True},
            "eval_entropy",
        ),
    ],
)
def test_what_an_evaluation_makes_is_taken(
    changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    made = trainer(tmp_path, **{**BEST, "eval_dataset": ROWS[:2], **changes})
    made.train()
    (line,) = [line for line in made.state.log_history if key in line]
    assert made.state.best_metric == line[key]
    assert made.args.greater_is_better is not ("loss" in key or "kl/" in key)


class Adds(TrainerCallback):
    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        more["metrics"]["eval_answers"] = 1.0


def test_a_callback_or_a_subclass_may_add_metrics(tmp_path: Path) -> None:
    options: dict[str, Any] = {**BEST, "metric_for_best_model": "answers", "eval_dataset": ROWS[:2]}
    made = trainer(tmp_path, callbacks=[Adds], **options)
    made.train()
    assert made.state.best_metric == 1.0

    class Own(PreferenceTrainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            return {**super().evaluate(*args, **kwargs), "eval_answers": 2.0}

    del options["eval_dataset"]
    made = Own(
        tiny_model(),
        args=config(tmp_path, **options),
        train_dataset=ROWS,
        eval_dataset=ROWS[:2],
        processing_class=byte_tokenizer(),
    )
    made.train()
    assert made.state.best_metric == 2.0


def test_a_callback_that_is_added_later_is_looked_at(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.add_callback(EarlyStoppingCallback)
    with pytest.raises(ConfigError, match="EarlyStoppingCallback"):
        made.train()


def test_supervised_runs_have_metrics_of_their_own(tmp_path: Path) -> None:
    rows = test_supervised.ROWS[:2]
    with pytest.raises(ConfigError, match="Choose one of: eval_loss, eval_mean_token_accuracy\\."):
        test_supervised.trainer(
            tmp_path, **BEST, eval_dataset=rows, metric_for_best_model="rewards/margins"
        )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--eval_data", "x"], "eval_data has no effect without evaluation"),
        (["--eval_on_start", "true"], "eval_on_start is on, but there is no eval_data"),
    ],
)
def test_the_command_line(flags: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_options(["--model", "m", "--train_data", "t", *flags])
