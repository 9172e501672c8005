"""Rows of a token budget: every pair once, no row over it, the same rows for the same seed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.data import PairCollator, PairDataset
from prefkit.data.packing import PackedDataset, row_tokens
from prefkit.errors import ConfigError
from prefkit.train.datasets import UnwrappingCollator, pair_of, plain
from prefkit.train.layout import describe_rows
from tests.test_layout import pair

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(2, 12)), min_size=1, max_size=60)


def dataset_of(lengths: list[tuple[int, int]]) -> PairDataset:
    return PairDataset([pair(p, 0, (n, n + 1), seed) for seed, (p, n) in enumerate(lengths)])


def packed(dataset: PairDataset, budget: int, layout: Any, seed: int | None = 1) -> PackedDataset:
    return PackedDataset(dataset, pair_of, budget, layout, seed)


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
