"""ZeRO-3 in a loop of DeepSpeed's own engine trains as one process does."""

import json
from typing import Any

import pytest

from tests.torchrun import ROOT, launched_once

NONE = "DeepSpeed is not installed, nor is it in any extra: pip install deepspeed"
pytest.importorskip("deepspeed", reason=NONE)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = launched_once(tmp_path_factory, 2, ROOT / "tests/loop/zero3_work.py")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["dpo", "tdpo", "tdpo, whole reference", "adapter"])
def test_two_processes_train_as_one_with_all_pairs(
    case: str, reports: list[dict[str, Any]]
) -> None:
    for report in reports:
        found = report[case]
        assert found["losses"] == pytest.approx(found["want"], rel=1e-5)
        assert found["error"] < 2e-5  # of the largest weight of the same parameter; fp32 rounding
        assert found["apart"] == 0.0


def test_a_partitioned_weight_is_refused(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        (said,) = report["around"]
        assert "not in memory" in said
        assert "preference_loss" in said
