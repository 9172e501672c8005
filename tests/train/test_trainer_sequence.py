"""Rows cut into pieces, what cannot be shared, and the cached reference beside the live one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit import PreferenceTrainer
from prefkit.data import PairCollator, PairDataset
from prefkit.data.batch import spread as sharded_rows
from prefkit.data.batch.stream import Stream
from prefkit.errors import ConfigError, ModelError
from prefkit.train.checks.entry import check_run
from tests.train.test_layout import pair
from tests.train.trainer_cases import (
    ROWS,
    byte_tokenizer,
    config,
    logs_of,
    tiny_model,
    trainer,
    weights_of,
)


class Group:
    """Rank and size, all that `cut` asks of a group."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = lambda: rank, lambda: size


@pytest.mark.parametrize("size", [2, 3])
def test_pieces_make_up_the_row(size: int) -> None:
    """Every token once, every scored token with its predictor: nothing at a border is shifted."""
    pairs = PairDataset([pair(9, 0, (5, 3), 0), pair(1, 0, (7, 1), 30)])
    whole = PairCollator(257, size, "shared")([pairs[0], pairs[1]])
    pieces = [
        sharded_rows.cut(whole, Group(rank, size), torch.device("cpu"))  # type: ignore[arg-type]
        for rank in range(size)
    ]
    ids = torch.cat([piece["input_ids"] for piece in pieces], 1)
    assert torch.equal(ids, whole["input_ids"])
    positions = torch.cat([piece["position_ids"] for piece in pieces], 1)
    assert torch.equal(positions, whole["position_ids"])
    assert sum(piece["num_tokens"] for piece in pieces) == whole["num_tokens"]
    assert sum(piece["num_scored"] for piece in pieces) == whole["num_scored"]
    length = whole["input_ids"].shape[1] // size
    scored = set()
    for rank, piece in enumerate(pieces):
        assert isinstance(piece["stream"].stream, Stream)
        for row, *rest in zip(*(piece[name].tolist() for name in NAMES), strict=True):  # type: ignore[literal-required]
            scored.add((row + rank * length, *rest))
    assert scored == set(zip(*(whole[name].tolist() for name in NAMES), strict=True))  # type: ignore[literal-required]


NAMES = ("positions", "targets", "segments", "weights")


@pytest.mark.parametrize("family", ["llama", "llama-tied", "granite"])
def test_cached_hidden_states_train_as_the_live_reference(family: str, tmp_path: Path) -> None:
    """The policy is its own reference: the kept head must not move with it."""
    seen = {}
    for cached in (False, True):
        model = tiny_model(family, scale=3.0)
        options = {"precompute_ref_hidden": cached, "eval_dataset": ROWS[:5], "method": "tdpo2"}
        one = trainer(tmp_path / str(cached), model, **options)
        assert (one.reference is None) == cached
        one.train()
        seen[cached] = (logs_of(one, "loss"), one.evaluate(), weights_of(model))
    for live, kept in zip(seen[False][0], seen[True][0], strict=True):
        for name in ("loss", "kl/chosen", "kl/rejected", "grad_norm"):
            assert kept[name] == pytest.approx(live[name], rel=1e-4, abs=1e-6), name
    assert seen[True][0][-1]["kl/rejected"] > 1e-3
    assert seen[True][1]["eval_loss"] == pytest.approx(seen[False][1]["eval_loss"], rel=1e-4)


def test_what_cannot_be_shared_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = config(tmp_path, sequence_parallel_size=2)  # a config may be described anywhere
    with pytest.raises(ConfigError, match=r"is 2, and this run has 1 process.*torchrun"):
        trainer(tmp_path, sequence_parallel_size=2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="is 2, and this run has 3 process"):
        check_run(described)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_run(described)
    with pytest.raises(ConfigError, match="sequence_parallel_size and reduction 'position'"):
        config(tmp_path, sequence_parallel_size=2, method="cdpo", reduction="position")
    with pytest.raises(ConfigError, match="sequence_parallel_size and pair_weights"):
        config(tmp_path, sequence_parallel_size=2, use_weighting=True)
    with pytest.raises(ConfigError, match="sequence_parallel_size is 0; it must be 1 or more"):
        config(tmp_path, sequence_parallel_size=0)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="sequence_parallel_size and deepspeed"):
        check_run(described)


def test_heads_and_rows_that_cannot_be_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(size: int, **options: Any) -> PreferenceTrainer:
        args = config(tmp_path, sequence_parallel_size=size)
        tokenizer = byte_tokenizer()
        with monkeypatch.context() as launched:
            launched.setenv("WORLD_SIZE", str(size))
            return PreferenceTrainer(
                tiny_model(), args=args, train_dataset=ROWS, processing_class=tokenizer, **options
            )

    with pytest.raises(ModelError, match="2 attention heads cannot be shared out over 4"):
        make(4)
    with pytest.raises(ConfigError, match="needs rows without padding"):
        make(2, data_collator=PairCollator(257))


def test_hidden_states_are_for_methods_with_a_kl(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"precompute_ref_hidden keeps what the KL of tdpo1"):
        config(tmp_path, precompute_ref_hidden=True)
    with pytest.raises(ConfigError, match="or use precompute_ref_hidden"):
        config(tmp_path, precompute_ref_log_probs=True, method="tdpo2")
