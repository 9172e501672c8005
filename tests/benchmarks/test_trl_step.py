"""TRL's step with prefkit's head: all ways train the same rows, and the table is beside TRL."""

import pytest

from benchmarks.trl_step import WAYS, table
from benchmarks.whole_step.shapes import Shape
from benchmarks.whole_step.turns import Result, measure

SMALL = Shape(prefix=16, chosen=4, rejected=5, words="small", body="minute", exact=True)


def test_a_table_beside_trl() -> None:
    results = {
        "trl": Result([4.0, 8.0, 4.0], 20, 5_000_000, 40, 1_000_000),
        "prefkit": Result([1.0], 20, 3_000_000, 25, 1_000_000),
    }
    lines = table(SMALL, results).splitlines()
    assert lines[0] == "### small: 16 + 4 | 5 tokens"
    assert lines[-2] == "| trl | 4.00 (4.00–8.00) | 1.00 | 5 | 1.00 | 1.00 | 40 |"
    assert lines[-1] == "| prefkit | 1.00 (1.00–1.00) | 0.25 | 3 | 0.60 | 0.50 | 25 |"


@pytest.mark.slow
def test_every_way_takes_a_step() -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    found = measure(SMALL, WAYS, None, 1)
    assert {way: len(got.seconds) for way, got in found.items()} == dict.fromkeys(WAYS, 1)
    read = {way: got.read for way, got in found.items()}
    # 16 + 4 and 5 of the sides, each with an end; padded to the longer one; or one prefix for both.
    assert read["trl"] == read["trl with prefkit, padded"] == 2 * 22
    assert read["trl with prefkit"] == read["prefkit"] < 2 * 16
