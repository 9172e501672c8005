"""Rows of a token budget: every pair once, no row over it, the same rows for the same seed."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.data import PairCollator, PairDataset, prepare_pairs
from prefkit.data.batch.bundles import row_tokens
from prefkit.data.batch.packing import PackedDataset, pack, rows_of_data
from prefkit.data.formats.detect import ReadOptions
from prefkit.data.pair import TokenizedPair, TokenizedSide
from prefkit.errors import ConfigError
from prefkit.train.rows.datasets import CachedDataset, UnwrappingCollator, plain
from prefkit.train.rows.datasets import packed as packed_dataset
from prefkit.train.rows.layout import describe_rows
from tests.train.test_layout import pair
from tests.train.trainer_cases import byte_tokenizer, tiny_model, trainer, weights_of
from tests.train.tree_cases import random_pairs

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(2, 12)), min_size=1, max_size=60)


def dataset_of(lengths: list[tuple[int, int]]) -> PairDataset:
    return PairDataset([pair(p, 0, (n, n + 1), seed) for seed, (p, n) in enumerate(lengths)])


def packed(dataset: PairDataset, budget: int, layout: Any, seed: int | None = 1) -> PackedDataset:
    return pack(dataset, [pair for _, pair in dataset], budget, layout, seed)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, layout=st.sampled_from(["tree", "shared", "separate", "padded"]))
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
        "common prefixes of pairs read once, 156 of 276 tokens (43% saved)"
    )
    rows = packed(dataset, 80, "shared")
    assert describe_rows("shared", rows).endswith("; packed into 2 rows, 98% full")
    assert plain(rows) is dataset
    assert describe_rows("separate", dataset) == "without padding, 276 tokens"


def test_what_is_cached_on_a_disk_is_not_read_to_pack(tmp_path: Path) -> None:
    class Cache:
        read = 0

        def rows(self, index: int) -> Any:
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


# -- trees -----------------------------------------------------------------------------------------


def tree_of_steps(steps: int = 6, length: int = 4, question: int | None = 0) -> list[TokenizedPair]:
    """A solution of equal steps, and beside each of them a wrong one."""
    front, pairs = list(range(1, 6)), []
    for step in range(steps):
        right, wrong = ([100 * step + k + 10 * side for k in range(length)] for side in (1, 2))
        sides = [
            TokenizedSide(
                ids=np.array([*front, *ids], dtype=np.int32),
                scored=np.arange(len(front) + length) >= len(front),
                weights=(np.arange(len(front) + length) >= len(front)).astype(np.float32),
                eos=False,
            )
            for ids in (right, wrong)
        ]
        pairs.append(
            TokenizedPair(
                chosen=sides[0], rejected=sides[1], shared=len(front), source="steps", row=step,
                question=question,
            )
        )  # fmt: skip
        front += right
    return pairs


def test_a_question_is_one_tree_and_one_bundle() -> None:
    pairs = tree_of_steps()
    assert row_tokens(pairs, "tree") == 5 + 6 * (4 + 4)
    assert row_tokens(pairs, "shared") == sum(5 + 4 * k + 4 + 4 for k in range(6))
    both = [*tree_of_steps(question=1), *pairs, *tree_of_steps(question=None)]
    rows = pack(both, both, 60, "tree", 0)
    assert sorted(sorted(row) for row in rows.rows if len(row) == 6)[:2] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
    ]
    batch = PairCollator(0, layout="tree")(pairs)
    assert batch["input_ids"].shape == (1, 5 + 6 * 8)
    assert [len(one.queries) for one in batch["stream"].attends()] == [5 + 6 * 4, *[4] * 6]


def test_a_question_larger_than_a_row_is_split_at_a_node() -> None:
    """Each part repeats the path to its pairs and nothing else."""
    pairs = tree_of_steps()
    rows = pack(pairs, pairs, 40, "tree", None)
    assert [sorted(row) for row in rows.rows] == [
        [0, 1, 2, 3],
        [4, 5],
    ]  # 5 + 4·8 = 37; 5 + 4·4 + 2·8 = 37
    assert rows.tokens == 37 + 37
    for row in rows.rows:
        batch = PairCollator(0, layout="tree")([pairs[i] for i in row])
        assert batch["num_tokens"] == 37
    with pytest.raises(ConfigError, match="steps: row 5: the pair has 33 tokens in layout tree"):
        pack(pairs, pairs, 32, "tree", None)


def test_pairs_are_dealt_one_by_one_where_questions_need_not_stay_together() -> None:
    pairs = tree_of_steps()
    rows = pack(pairs, pairs, 40, "tree", None, group_by="none")
    assert max(map(len, rows.rows)) == 2
    assert sorted(item for row in rows.rows for item in row) == list(range(6))


def test_pairs_of_one_row_of_data_stay_together() -> None:
    pairs = [replace(pair, row=k // 3) for k, pair in enumerate(tree_of_steps())]
    for layout in ("tree", "shared"):
        rows = pack(pairs, pairs, 200, layout, 1, "none", whole_rows=True)
        assert {tuple(sorted(row)) for row in rows.rows} == {(0, 1, 2, 3, 4, 5)}
    with pytest.raises(ConfigError, match="row 1: its 3 pairs, which stay together, have 41 tok"):
        pack(pairs, pairs, 40, "tree", None, whole_rows=True)
    assert rows_of_data(pairs, pairs, "shared").rows == [[0, 1, 2], [3, 4, 5]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.integers(20, 120))
def test_rows_of_random_trees_hold_what_they_say(seed: int, budget: int) -> None:
    pairs = [p for k in range(3) for p in random_pairs(seed + k)]
    rows = pack(pairs, pairs, max(budget, *(row_tokens([p], "tree") for p in pairs)), "tree", seed)
    assert sorted(item for row in rows.rows for item in row) == list(range(len(pairs)))
    read = [PairCollator(0, layout="tree")([pairs[i] for i in row]) for row in rows.rows]
    assert sum(batch["num_tokens"] for batch in read) <= rows.tokens
    assert all(batch["num_tokens"] <= rows.tokens for batch in read)


# -- questions -------------------------------------------------------------------------------------


def questions_of(rows: list[dict[str, str]]) -> list[int]:
    """For each row the first row of its question."""
    found = [pair.question for pair in prepare_pairs(rows, byte_tokenizer(), reading=STEPS).pairs]
    return [found.index(question) for question in found]


STEPS = ReadOptions(level="step")


def test_rows_with_one_prompt_are_of_one_question_and_steps_within_it_too() -> None:
    """Whether the steps before have a field of their own or stand in the prompt."""
    ask = "How many eggs are left?\n"
    front = ["", "First three.\n", "First three.\nThen five.\n"]
    own = [{"prompt": ask, "prefix": f, "chosen": "x", "rejected": "y"} for f in front]
    within = [{"prompt": ask + f, "chosen": "x", "rejected": "y"} for f in front]
    other = [{"prompt": "How many hens?\n", "chosen": "x", "rejected": "y"}]
    assert questions_of([*other, *own]) == [0, 1, 1, 1]
    assert questions_of([*within[::-1], *other]) == [0, 0, 0, 3]
    assert questions_of([own[0], within[2], other[0], own[1]]) == [0, 0, 2, 0]


def test_a_templates_first_words_make_no_question() -> None:
    rows = [{"prompt": p, "chosen": "x", "rejected": "y"} for p in ("Q: ", "Q: 1+1=", "Q: 2+2=")]
    assert questions_of(rows) == [0, 1, 2]


def test_an_instruction_that_all_rows_begin_with_makes_no_question() -> None:
    rows = [{"prompt": "Answer in one word.\n", "chosen": "x", "rejected": "y"}]
    rows += [{**rows[0], "prompt": f"Answer in one word.\n{k} + 1?\n"} for k in range(9)]
    assert questions_of(rows) == list(range(10))
    assert questions_of(rows[:5]) == [0] * 5  # so few may be steps


def test_all_pairs_of_many_samples_are_split_in_blocks() -> None:
    """16 x 16 pairs of 30 tokens, 12 sequences a row: strips of the table would cost triple."""
    draw = np.random.default_rng(0)
    front = draw.integers(0, 99, 10)
    ends = [[np.append(front, draw.integers(0, 99, 30)).astype(np.int32) for _ in range(16)] * 1
            for _ in range(2)]  # fmt: skip
    scored = np.arange(40) >= 10
    good, bad = (
        [
            TokenizedSide(ids=e, scored=scored, weights=scored * np.float32(1), eos=False)
            for e in some
        ]
        for some in ends
    )
    pairs = [
        TokenizedPair(chosen=g, rejected=b, shared=10, source="all", row=k, question=0)
        for k, (g, b) in enumerate((g, b) for g in good for b in bad)
    ]
    rows = pack(pairs, pairs, 10 + 12 * 30, "tree", None)
    assert sorted(item for row in rows.rows for item in row) == list(range(256))
    assert len(rows.rows) <= 10
