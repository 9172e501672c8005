"""Metrics and predictions of one's own: values of every pair, each once, in the order of rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefkit import PreferenceTrainer
from prefkit.errors import ConfigError
from prefkit.train.predictions import PairPredictions
from tests.train.trainer_cases import (
    ROWS,
    TREE_ROWS,
    byte_tokenizer,
    config,
    logs_of,
    tiny_model,
    trainer,
)

BETA = 0.1
LAYOUTS: dict[str, dict[str, Any]] = {
    "trees": {},
    "packed trees": {"tokens_per_batch": 90},
    "packed, dealt one by one": {"tokens_per_batch": 90, "group_by": "none"},
    "separate": {"layout": "separate"},
    "padded": {"disable_dropout": False},  # which rows without padding do not have
    "cached": {"precompute_ref_log_probs": True},
    "rows of several": {"link": "plackett_luce"},
}


def log_prob(model: Any, prompt: str, response: str) -> float:
    """Of a response and its end, by plain logits."""
    tokenizer = byte_tokenizer()
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor([[*tokenizer(prompt + response)["input_ids"], 256]])
    with torch.no_grad():
        logp = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
    return float(logp.gather(1, ids[0, 1:, None])[start - 1 :].sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pair_has_its_values_in_the_order_of_rows(layout: str, tmp_path: Path) -> None:
    """Against plain logits of each response by itself, after some training."""
    rows: list[Any] = TREE_ROWS[:9]
    if layout == "rows of several":
        rows = [{**row, "rejected": [row["rejected"], " no"]} for row in ROWS[:5]]
    options: dict[str, Any] = {"beta": BETA, "max_steps": 2, **LAYOUTS[layout]}
    given = [*rows[:3], {**rows[0], "chosen": ""}, *rows[3:]]  # a row is left out
    trained = trainer(
        tmp_path,
        tiny_model(scale=3.0),
        TREE_ROWS,
        eval_dataset=given,
        empty="skip",
        compute_metrics=len_of,
        **options,
    )
    trained.train()
    assert trained.evaluate()["eval_pairs"] == (10 if layout == "rows of several" else 9)
    found = SEEN[-1]
    texts = [
        (place + (place > 2), row["prompt"], row["chosen"], rejected)
        for place, row in enumerate(rows)
        for rejected in ([row["rejected"]] if isinstance(row["rejected"], str) else row["rejected"])
    ]
    assert found.rows.tolist() == [row for row, *_ in texts]
    plain = tiny_model(scale=3.0)
    for side, place in (("chosen", 2), ("rejected", 3)):
        before = np.array([log_prob(plain, one[1], one[place]) for one in texts])
        plain_now = tiny_model(scale=3.0)
        plain_now.load_state_dict(trained.model.state_dict())
        after = np.array([log_prob(plain_now, one[1], one[place]) for one in texts])
        np.testing.assert_allclose(getattr(found, f"{side}_logps"), after, rtol=1e-4)
        np.testing.assert_allclose(getattr(found, f"ref_{side}_logps"), before, rtol=1e-4)
        rewards = BETA * (after - before)
        np.testing.assert_allclose(getattr(found, f"{side}_rewards"), rewards, atol=1e-4)
    assert abs(found.margins).max() > 0.01


SEEN: list[PairPredictions] = []


def len_of(predictions: PairPredictions) -> dict[str, Any]:
    SEEN.append(predictions)
    return {"pairs": len(predictions.margins)}


def accuracy(predictions: Any) -> dict[str, Any]:
    """As for a reward model: of two rewards a pair, and which should be the larger one."""
    rewards, labels = predictions
    return {"correct": (np.argmax(rewards, axis=1) == labels).mean()}


def test_a_function_for_reward_models_is_logged_and_chooses_the_best_model(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **{"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
        **{"load_best_model_at_end": True, "metric_for_best_model": "correct"},
        "greater_is_better": True,
    }
    trained = trainer(
        tmp_path, eval_dataset=ROWS[:5], compute_metrics=accuracy, max_steps=4, **options
    )
    trained.train()
    lines = logs_of(trained, "eval_correct")
    assert [line["eval_correct"] for line in lines] == [
        line["eval_rewards/accuracies"] for line in lines
    ]
    assert trained.state.best_metric == max(line["eval_correct"] for line in lines)


def test_predict_tells_of_rows_that_come_later(tmp_path: Path) -> None:
    for method in ("dpo", "tdpo2", "simpo"):
        made = trainer(tmp_path / method, method=method, compute_metrics=accuracy)
        made.train()
        found = made.predict(ROWS[2:7])
        metrics = made.evaluate(ROWS[2:7])
        assert found.predictions.shape == (5, 2)
        for name, values in {
            "rewards/margins": found.margins,
            "rewards/rejected": found.rejected_rewards,
            "logps/chosen": found.chosen_logps,
        }.items():
            assert values.mean() == pytest.approx(metrics[f"eval_{name}"], rel=1e-5)
            assert found.metrics[f"test_{name}"] == pytest.approx(metrics[f"eval_{name}"], rel=1e-5)
        assert found.metrics["test_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
        assert found.metrics["test_correct"] == metrics["eval_correct"]
        assert (found.ref_chosen_logps is None) == (method == "simpo")
        with pytest.raises(ConfigError, match="predict takes the rows of one set"):
            made.predict({"a": ROWS[:2]})


REFUSED: dict[str, tuple[Any, str]] = {
    "no dict": (lambda predictions: 0.5, "returned a float; it must return a dict"),
    "an array": (lambda predictions: {"m": predictions.margins}, "returned m, a ndarray"),
    "a word": (lambda predictions: {"m": "good"}, "returned m, a str"),
    "its own": (lambda predictions: {"rewards/margins": 1}, "returned rewards/margins, which"),
    "its loss": (lambda predictions: {"eval_loss": 1.0}, "returned eval_loss, which"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_metric_is_refused(case: str, tmp_path: Path) -> None:
    function, said = REFUSED[case]
    with pytest.raises(ConfigError, match=said):
        trainer(tmp_path, compute_metrics=function).evaluate(ROWS[:2])


def test_arguments_that_speak_against_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compute_metrics is a int; it must be a function"):
        trainer(tmp_path, compute_metrics=3)
    with pytest.raises(ConfigError, match="prediction_loss_only"):
        trainer(tmp_path, compute_metrics=accuracy, prediction_loss_only=True)


def test_a_collator_that_does_not_name_its_pairs_is_refused(tmp_path: Path) -> None:
    from prefkit.data import PairCollator

    class Nameless(PairCollator):
        def __call__(self, items: Any) -> Any:
            batch = super().__call__(items)
            batch["pair_index"] = torch.zeros_like(batch["pair_index"])
            return batch

    made = PreferenceTrainer(
        tiny_model(),
        args=config(tmp_path),
        data_collator=Nameless(257),
        eval_dataset=ROWS[:3],
        processing_class=byte_tokenizer(),
        compute_metrics=accuracy,
    )
    with pytest.raises(
        ConfigError, match=r"3 pairs are wanted, and the batches name 1.*pair_index"
    ):
        made.evaluate()
