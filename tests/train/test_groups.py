"""Link plackett_luce in training: groups from rows, a mean over groups, metrics over pairs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit import ConfigError, PreferenceTrainer
from prefkit.data import PairCollator
from prefkit.data.groups import group_numbers
from tests.train.trainer_cases import ROWS, byte_tokenizer, config, logs_of, tiny_model

# Groups of three, one and two pairs: batches of three pairs split none.
COUNTS = [3, 1, 2]
SEVERAL = [
    {**row, "rejected": [f" {9 + i}, surely" for i in range(count)]}
    for row, count in zip(ROWS, COUNTS, strict=False)
]
PLAIN = PairCollator(257)


def collate(items: list) -> Any:
    numbers = group_numbers([item[1] if isinstance(item, tuple) else item for item in items])
    return {**PLAIN(items), "groups": torch.from_numpy(numbers)}


def trainer(folder: Path, collator: Any, **options: Any) -> PreferenceTrainer:
    options = {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3, **options}
    return PreferenceTrainer(
        tiny_model(),
        args=config(folder, link="plackett_luce", **options),
        data_collator=collator,
        train_dataset=SEVERAL,
        processing_class=byte_tokenizer(),
    )


def test_at_the_reference_the_loss_is_that_of_a_draw_among_the_responses(tmp_path: Path) -> None:
    """The policy is its own reference before training: every u is 0, and L = log(1 + K)."""
    made = trainer(
        tmp_path,
        collate,
        train_sampling_strategy="sequential",
        gradient_accumulation_steps=2,
        max_steps=1,
    )
    expected = sum(math.log(1 + count) for count in COUNTS) / len(COUNTS)
    assert made.evaluate(SEVERAL)["eval_loss"] == pytest.approx(expected, abs=1e-5)
    made.train()
    (line,) = [line for line in logs_of(made) if "rewards/margins" in line]
    assert line["loss"] == pytest.approx(expected, abs=1e-5)
    after = made.evaluate(SEVERAL)
    assert after["eval_loss"] < expected


def test_a_batch_without_groups_is_refused(tmp_path: Path) -> None:
    def without(items: list) -> Any:
        return {name: value for name, value in PLAIN(items).items() if name != "groups"}

    with pytest.raises(ConfigError, match="does not say which pairs share their chosen response"):
        trainer(tmp_path, without).train()
