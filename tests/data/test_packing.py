"""Rows of a token budget: every pair once, no row over it, the same rows for the same seed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.data import PairCollator, PairDataset
from prefkit.data.batch.packing import PackedDataset, row_tokens
from prefkit.errors import ConfigError
from prefkit.train.rows.datasets import CachedDataset, UnwrappingCollator, plain
from prefkit.train.rows.datasets import packed as packed_dataset
from prefkit.train.rows.layout import describe_rows
from tests.train.test_layout import pair
from tests.train.trainer_cases import tiny_model, trainer, weights_of

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(2, 12)), min_size=1, max_size=60)


def dataset_of(lengths: list[tuple[int, int]]) -> PairDataset:
    return PairDataset([pair(p, 0, (n, n + 1), seed) for seed, (p, n) in enumerate(lengths)])


def packed(dataset: PairDataset, budget: int, layout: Any, seed: int | None = 1) -> PackedDataset:
    return PackedDataset(dataset, [pair for _, pair in dataset], budget, layout, seed)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, layout=st.sampled_from(["shared", "separate", "padded"]))
def test_every_pair_once_and_no_row_over_the_budget(
    lengths: list[tuple[int, int]], layout: Any
) -> None:
    rows = packed(dataset_of(lengths), 90, layout)
    assert sorted(i for row in rows.rows for i in row) == list(range(len(lengths)))
    collate = UnwrappingCollator(PairCollator(257, layout=layout))
    for k in range(len(rows)):
        batch = collate([rows[k]])
        assert batch["input_ids"].numel() <= 90
        assert batch["input_ids"].numel() == row_tokens([p for _, p in rows[k]], layout)
        assert batch["pair_index"].tolist() == rows.rows[k]


def test_rows_are_filled() -> None:
    rows = packed(dataset_of([(1 + 7 * i % 30, 2 + 5 * i % 11) for i in range(400)]), 500, "shared")
    assert rows.fill > 0.95
    assert len(rows) < 400 * 40 / 500


def test_the_seed_decides_the_rows() -> None:
    dataset = dataset_of([(5, 4)] * 30)
    first, again, other, plainly = (
        packed(dataset, 60, "shared", seed).rows for seed in (1, 1, 2, None)
    )
    assert first == again != other
    assert plainly[0] == [0, 1, 2, 3]


def test_a_pair_larger_than_a_row_is_named() -> None:
    dataset = dataset_of([(5, 4), (30, 4)])
    with pytest.raises(ConfigError, match="test: row 1: the pair has 39 tokens in layout shared"):
        packed(dataset, 38, "shared")
    with pytest.raises(ConfigError, match="69 tokens in layout separate, more than tokens_per_ba"):
        packed(dataset, 68, "separate")


def test_a_run_says_what_it_reads() -> None:
    dataset = dataset_of([(30, 4)] * 4)
    assert describe_rows("shared", dataset) == (
        "common prefixes read once, 156 of 276 tokens (43% saved)"
    )
    rows = packed(dataset, 80, "shared")
    assert describe_rows("shared", rows).endswith("; packed into 2 rows, 98% full")
    assert plain(rows) is dataset
    assert describe_rows("separate", dataset) == "without padding, 276 tokens"


def test_what_is_cached_on_a_disk_is_not_read_to_pack(tmp_path: Path) -> None:
    class Cache:
        read = 0

        def __getitem__(self, index: int) -> Any:
            Cache.read += 1
            raise AssertionError("packing needs lengths alone")

    dataset = dataset_of([(5, 4)] * 9)
    rows = packed_dataset(CachedDataset(dataset, Cache()), 60, "shared", 1)  # type: ignore[arg-type]
    assert sorted(i for row in rows.rows for i in row) == list(range(9))
    assert Cache.read == 0


def test_a_run_of_packed_rows_resumes_and_refuses_other_rows(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokens_per_batch": 60, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", tiny_model(), max_steps=4, **options)
    whole.train()
    first = trainer(tmp_path / "part", tiny_model(), max_steps=4, **options)
    first.train()
    shutil.rmtree(tmp_path / "part" / "checkpoint-4")
    again = trainer(tmp_path / "part", tiny_model(), max_steps=4, **options)
    again.train(resume_from_checkpoint="auto")
    assert again.started_at == 2
    for name, value in weights_of(again.model).items():
        assert torch.equal(value, weights_of(whole.model)[name])
    shutil.rmtree(tmp_path / "part" / "checkpoint-4")
    for change in ({"tokens_per_batch": 120}, {"seed": 7}, {"layout": "separate"}):
        other = trainer(tmp_path / "part", tiny_model(), max_steps=4, **{**options, **change})
        with pytest.raises(ConfigError, match="trained with other packed rows"):
            other.train(resume_from_checkpoint="auto")


def test_a_finished_run_of_packed_rows_is_finished(tmp_path: Path) -> None:
    """An epoch has as many steps as rows, not as pairs."""
    options = {"tokens_per_batch": 60, "max_steps": -1, "num_train_epochs": 1}
    options |= {"save_strategy": "epoch"}
    trainer(tmp_path, tiny_model(), **options).train()
    again = trainer(tmp_path, tiny_model(), **options)
    again.train(resume_from_checkpoint="auto")
    assert again.started_at == again.state.global_step == len(again.train_dataset)  # type: ignore[arg-type]
