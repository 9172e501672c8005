"""A margin from data: read from each row, carried through every layout, subtracted in the loss."""

import math
from pathlib import Path
from typing import Any

import pytest

from prefkit import ConfigError, PreferenceTrainer, RowError
from prefkit.data import PairCollator, prepare_pairs
from tests.train.trainer_cases import ROWS, byte_tokenizer, config, tiny_model, trainer

WITH_MARGINS = [{**row, "margin": index / 4 - 1} for index, row in enumerate(ROWS[:6])]
WEIGHT = 2.0


@pytest.mark.parametrize(
    "options",
    [{"layout": "shared"}, {"layout": "separate"}, {"tokens_per_batch": 64}, {"method": "dpop"}],
    ids=lambda options: next(iter(options.values())),
)
def test_at_the_reference_the_loss_is_that_of_the_margins_alone(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """The policy is its own reference before training: u_i = −α·m_i, whatever the model."""
    made = trainer(tmp_path, rows=WITH_MARGINS, margin_weight=WEIGHT, **options)
    expected = [math.log1p(math.exp(WEIGHT * row["margin"])) for row in WITH_MARGINS]
    found = made.evaluate(WITH_MARGINS)["eval_loss"]
    assert found == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    made.train()


def test_a_margin_is_read_from_the_column_that_holds_it(tmp_path: Path) -> None:
    rows = [{**row, "gap": row["margin"]} for row in WITH_MARGINS]
    rows = [{name: value for name, value in row.items() if name != "margin"} for row in rows]
    made = trainer(tmp_path, rows=rows, margin_weight=WEIGHT, columns={"margin": "gap"})
    assert [pair.margin for pair in made.train_dataset.pairs] == [r["margin"] for r in WITH_MARGINS]


@pytest.mark.parametrize("margin", [None, "large", True, math.nan])
def test_a_row_without_a_margin_is_named(margin: Any, tmp_path: Path) -> None:
    rows = [WITH_MARGINS[0], {**WITH_MARGINS[1], "margin": margin}]
    with pytest.raises(RowError, match=r"row 1, field 'margin'.*leave margin_weight out"):
        trainer(tmp_path, rows=rows, margin_weight=WEIGHT)
    trainer(tmp_path, rows=rows)  # nobody reads it


def test_a_collator_that_leaves_the_margins_out_is_refused(tmp_path: Path) -> None:
    plain = PairCollator(257)

    def collate(items: list) -> Any:
        return {name: value for name, value in plain(items).items() if name != "margins"}

    made = PreferenceTrainer(
        tiny_model(),
        args=config(tmp_path, margin_weight=WEIGHT),
        data_collator=collate,
        train_dataset=WITH_MARGINS,
        processing_class=byte_tokenizer(),
    )
    with pytest.raises(ConfigError, match="the batch brings no margins"):
        made.train()


def test_pairs_prepared_without_their_margins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"row 0 of the train data.*margins=True"):
        PreferenceTrainer(
            tiny_model(),
            args=config(tmp_path, margin_weight=WEIGHT),
            train_dataset=prepare_pairs(WITH_MARGINS, byte_tokenizer()),
            processing_class=byte_tokenizer(),
        )
