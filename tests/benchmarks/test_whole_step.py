"""The benchmarks of whole steps run, on rows of the lengths they name; a long row stays small."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks.long_rows import VOCAB, Point, draw, measure, shape_of, table
from benchmarks.whole_step.__main__ import table as table_of_ways
from benchmarks.whole_step.shapes import SHAPES, TOKENIZER, Shape, rows
from benchmarks.whole_step.turns import Result
from benchmarks.whole_step.turns import measure as measure_ways


@pytest.mark.parametrize("name", SHAPES)
def test_rows_have_the_lengths_of_their_shape(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    shape = SHAPES[name]
    found = rows(shape, tokenizer, 3)
    assert len({row["chosen"] for row in found}) == 3
    for row in found:
        counts = [len(tokenizer(row[key], add_special_tokens=False)["input_ids"]) for key in row]
        assert counts == pytest.approx([shape.prefix, shape.chosen, shape.rejected], rel=0.2)


def test_a_row_of_the_curve_has_as_many_tokens_as_it_says() -> None:
    shape = shape_of(1024)
    ends = 2  # of the solutions
    assert shape.prefix + shape.chosen + shape.rejected + ends == 1024


def test_tables_compare_with_the_first_way() -> None:
    shape = Shape(prefix=8, chosen=2, rejected=3, words="small")
    results = {"prefkit": Result([1.0, 2.0, 3.0], 21, 100), "trl": Result([8.0], 21, 150)}
    lines = table_of_ways(shape, results).splitlines()
    assert lines[0] == "### small: 8 + 2 | 3 tokens"
    assert lines[-1] == "| trl | 8.00 (8.00–8.00) | 4.00 | 3 | 0 | 1.50 |"
    copy = 2048 * VOCAB * 4
    line = table([Point("prefkit", 2048, copy // 2, 1.5)]).splitlines()[-1]
    assert line == "| 2,048 | prefkit | 525 | 0.50 of 1051 MB | 1.5 |"


@pytest.mark.slow
def test_both_trainers_take_a_turn() -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    shape = Shape(prefix=24, chosen=6, rejected=7, body="tiny")
    found = measure_ways(shape, ("prefkit", "trl"), None, 1)
    assert [len(result.seconds) for result in found.values()] == [1, 1]
    assert all(result.memory > 0 and result.tokens > 50 for result in found.values())


@pytest.mark.slow
def test_a_long_row_takes_less_than_one_copy_of_its_logits(tmp_path: Path) -> None:
    """4,096 tokens, V 128,256: 2.1 GB of fp32 logits; weights and optimiser are counted."""
    point = measure("prefkit", 4096)
    assert point.memory < 0.6 * 4096 * VOCAB * 4
    draw([point], tmp_path / "curve.png", "one point")
    assert (tmp_path / "curve.png").stat().st_size > 1000
