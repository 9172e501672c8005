"""Heads split over two processes by the vocabulary equal one process, to rounding."""

import json
from typing import Any

import pytest
from torch.multiprocessing.spawn import spawn

from tests.kernels.vocab_parallel_work import work

PROCESSES = 2
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One launch for all questions: starting the processes takes longer than answering."""
    folder = tmp_path_factory.mktemp("vocab_parallel")
    spawn(work, (PROCESSES, str(folder)), nprocs=PROCESSES)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


def test_statistics_losses_and_gradients_equal_one_process(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert len(report["errors"]) >= 19
        for case, errors in report["errors"].items():
            for name, error in errors.items():
                bound = 1e-11 if case.startswith("fp64") else 2e-6
                assert error < bound, f"{case}: {name} {error:.1e}"


def test_a_slice_that_is_none_is_refused(reports: list[dict[str, Any]]) -> None:
    for rank, report in enumerate(reports):
        messages = report["messages"]
        assert f"weight has 23 rows, but process {rank} of 2 holds" in messages["whole weight"]
        assert "ref_weight has 5 rows" in messages["another reference"]
        assert "holds the whole vocabulary" in messages["by definition"]


def test_the_greedy_token_is_told_exactly(reports: list[dict[str, Any]]) -> None:
    assert all(report["greedy"] for report in reports)
