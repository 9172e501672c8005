"""Attention over two processes that hold the tokens of one sequence equals that of one process."""

import json
from typing import Any

import pytest
from torch.multiprocessing.spawn import spawn

from prefkit.errors import ModelError
from prefkit.model.attention.compute.ulysses import check_heads
from tests.model.ulysses_work import CASES, work

PROCESSES = 2


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ulysses")
    spawn(work, (PROCESSES, str(folder)), nprocs=PROCESSES)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.slow
def test_attention_and_its_gradients_equal_one_process(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert len(report["errors"]) == 2 * len(CASES) + 2
        for case, errors in report["errors"].items():
            for quantity, error in errors.items():
                assert error < 1e-12, (case, quantity)


@pytest.mark.slow
def test_heads_there_and_back_in_every_dtype(reports: list[dict[str, Any]]) -> None:
    assert all(all(report["round trip"]) for report in reports)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("heads", "3 attention heads cannot be shared out over 2 processes"),
        ("shapes", "q, k, v must be"),
        ("lengths", "lengths = [5, 5] must name the tokens of 2 processes"),
        ("too few", "4 tokens do not fit lengths = [4] of 2 processes"),
        ("odd", "5 tokens do not fit lengths = None of 2 processes"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sent(
    mistake: str, message: str, reports: list[dict[str, Any]]
) -> None:
    for report in reports:
        assert message in report["messages"][mistake]


def test_heads_are_checked_from_a_config_alone() -> None:
    check_heads(64, 8, 16)  # Llama-3-70B: 4 query heads and a copy of one key head each
    with pytest.raises(ModelError, match=r"must be a divisor of the heads \(2, 7, 14\)"):
        check_heads(14, 2, 8)
    with pytest.raises(ModelError, match="no multiple of 3 key"):
        check_heads(8, 3, 2)
