"""What a loss is a mean over is counted as the loss divides by it, whoever made the batch."""

from typing import Any

import pytest
import torch

import prefkit
from prefkit import DPO, KTO, SimPO, items_of, preference_loss, stream_of
from prefkit.data import PairCollator, ReadOptions, prepare_pairs
from prefkit.errors import ConfigError
from tests.loop.loop_cases import padded
from tests.train.trainer_cases import byte_tokenizer, tiny_model

UNPAIRED = [
    {"prompt": "1+1=", "completion": " 2", "label": True},
    {"prompt": "2+1=", "completion": " 4", "label": False},
    {"prompt": "3+1=", "completion": " 4", "label": True},
]
SHARED = [{"prompt": "1+1=", "chosen": " 2", "rejected": [" 3", " 4", " 5"]}]
OTHER = [{"prompt": "2+1=", "chosen": " 3", "rejected": " 4"}]


def collated(rows: list[dict[str, Any]], **options: Any) -> Any:
    tokenizer = byte_tokenizer()
    pairs = prepare_pairs(rows, tokenizer, reading=ReadOptions(**options)).pairs
    return PairCollator(tokenizer.pad_token_id)(pairs)


CASES: dict[str, tuple[Any, Any, int]] = {
    "pairs": (SimPO(), lambda: collated(SHARED + OTHER), 4),
    "pairs, padded": (SimPO(), lambda: stream_of(padded([0, 1, 2]), "interleaved"), 3),
    "both responses": (
        KTO(reference_point=False),
        lambda: stream_of(padded([0, 1, 2]), "interleaved"),
        6,
    ),
    "responses": (KTO(reference_point=False), lambda: collated(UNPAIRED, unpaired=True), 3),
    "groups": (DPO(loss_type="plackett_luce"), lambda: collated(SHARED + OTHER), 2),
}


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "to be counted"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_the_loss_divides_by(case: str, counted: bool) -> None:
    objective, make, want = CASES[case]
    batch = make()
    if not counted:
        batch = {k: v for k, v in batch.items() if k not in ("sides_there", "num_groups")}
    assert items_of(batch, objective) == want
    models: list[Any] = [tiny_model(seed=seed, scale=3.0).eval() for seed in (0, 1)]
    reference = models[1] if objective.needs_reference else None
    loss = preference_loss(models[0], batch, objective, reference).loss
    given = preference_loss(models[0], batch, objective, reference, num_pairs=want).loss
    torch.testing.assert_close(given, loss)
    assert prefkit.items_of is items_of


def test_groups_that_no_pair_names_are_asked_for() -> None:
    batch = stream_of(padded([0]), "interleaved")
    with pytest.raises(ConfigError, match="groups"):
        items_of(batch, DPO(loss_type="plackett_luce"))
