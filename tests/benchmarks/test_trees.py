"""The benchmark of trees: its rows, the pairs of a round, and a way that is killed."""

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.trees.__main__ import Way, _round, measure
from benchmarks.trees.rows import GSM8K, SHAPES, Shape, curve, pairs_a_round, rows_of
from benchmarks.whole_step.shapes import word_tokenizer
from benchmarks.whole_step.turns import Contestant

SMALL = Shape("small", 80, prompt=8, steps=3, length=6, questions=2)
STEP = {"seconds": 2.0, "cpu": 3.0, "read": 12, "memory": 5}
MINUTE = ("--body", "minute")


def test_each_step_pair_continues_the_one_before() -> None:
    rows = rows_of(SMALL, word_tokenizer(), 99)
    assert len(rows) == pairs_a_round(SMALL) == 6
    for before, row in itertools.pairwise(rows[:3]):
        assert row["prefix"] == before["prefix"] + before["chosen"]
        assert row["prompt"] == before["prompt"]
    assert rows[3]["prompt"] != rows[0]["prompt"]
    assert all(len(row["rejected"].split()) == 6 for row in rows)


def test_samples_are_paired_each_with_each_or_with_one() -> None:
    shape = replace(SHAPES["all"], samples=3, length=5)
    assert len(rows_of(shape, word_tokenizer(), 1)) == 9
    assert len(rows_of(replace(shape, all_pairs=False), word_tokenizer(), 1)) == 3


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K's solutions are in ../shared/data")
def test_real_pairs_are_of_questions_with_both() -> None:
    rows = rows_of(SHAPES["gsm8k"], None, 0)
    assert len(rows) == pairs_a_round(SHAPES["gsm8k"])
    assert len({row["prompt"] for row in rows}) == SHAPES["gsm8k"].questions
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_a_row_of_the_curve_holds_its_whole_tree() -> None:
    """Pieces are of whole words, so that a step of 40 tokens came to 44 with what ends it."""
    for shape in curve().values():
        nodes = shape.steps * (1 + shape.wrong)
        assert shape.prompt + 10 + (shape.length + 5) * nodes <= shape.budget


def test_a_round_reads_as_many_pairs_as_it_is_told() -> None:
    told = iter([3, 2, 1, 9])
    one = cast(Any, SimpleNamespace(step=lambda: {**STEP, "pairs": next(told)}))
    way = Way()
    _round(one, way, 6, warm_up=False)
    assert (way.seconds, way.cpu, way.tokens, way.pairs) == ([1.0], [1.5], [6.0], [2.0])
    assert next(told) == 9


@pytest.mark.slow
def test_trees_read_each_token_once() -> None:
    found = measure(SMALL, ("tree", "shared"), None, 1, MINUTE)
    # A prompt of 8, three steps of 6 and three beside them, and an end of sequence or none.
    assert found["tree"].tokens[0] * 3 == pytest.approx(8 + 6 * 6, abs=6)
    assert found["shared"].tokens[0] > 1.3 * found["tree"].tokens[0]


@pytest.mark.slow
def test_a_way_that_is_killed_says_so() -> None:
    one = Contestant("tree", SMALL, None, 2, module="benchmarks.trees.child", more=MINUTE)
    one.process.kill()
    with pytest.raises(RuntimeError, match=r"^tree ended, exit status -9 \(killed"):
        one.step()
