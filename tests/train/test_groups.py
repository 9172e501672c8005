"""Link plackett_luce in training: groups from rows, a mean over groups, metrics over pairs."""

import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from prefkit import ConfigError, PreferenceTrainer
from prefkit.data import PairCollator
from tests.train.trainer_cases import ROWS, byte_tokenizer, config, logs_of, tiny_model

COUNTS = [3, 1, 2]  # rejected responses of each row
SEVERAL = [
    {**row, "rejected": [f" {9 + i}, surely" for i in range(count)]}
    for row, count in zip(ROWS, COUNTS, strict=False)
]


def trainer(folder: Path, collator: Any = None, rows: Any = SEVERAL, **options: Any) -> Any:
    return PreferenceTrainer(
        tiny_model(),
        args=config(folder, link="plackett_luce", **options),
        data_collator=collator,
        train_dataset=rows,
        processing_class=byte_tokenizer(),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2},  # rows, not pairs
        {"per_device_train_batch_size": 1, "layout": "separate"},
        {"tokens_per_batch": 70, "per_device_train_batch_size": 1},
        {"tokens_per_batch": 70, "per_device_train_batch_size": 1, "group_by": "none"},
    ],
)
def test_at_the_reference_the_loss_is_that_of_a_draw_among_the_responses(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """The policy is its own reference before training: every u is 0, and L = log(1 + K)."""
    made = trainer(tmp_path, **options, gradient_accumulation_steps=3, max_steps=1)
    expected = sum(math.log(1 + count) for count in COUNTS) / len(COUNTS)
    assert made.evaluate(SEVERAL)["eval_loss"] == pytest.approx(expected, abs=1e-5)
    made.train()
    (line,) = [line for line in logs_of(made) if "rewards/margins" in line]
    assert line["loss"] == pytest.approx(expected, abs=1e-5)
    after = made.evaluate(SEVERAL)
    assert after["eval_loss"] < expected


def test_a_batch_without_groups_is_refused(tmp_path: Path) -> None:
    def without(items: list) -> Any:
        batch = PairCollator(257)(items)
        return {name: value for name, value in batch.items() if name != "groups"}

    with pytest.raises(ConfigError, match="does not say which pairs share their chosen response"):
        trainer(tmp_path, without).train()


def test_rows_that_a_budget_or_a_stream_would_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"row 0: its 3 pairs, which stay together, have \d+ tok"):
        trainer(tmp_path, tokens_per_batch=30, per_device_train_batch_size=1)
    stream = Dataset.from_list(SEVERAL).to_iterable_dataset()
    with pytest.raises(ConfigError, match="all rejected responses of a row in one batch"):
        trainer(tmp_path, rows=stream, max_steps=1)
