"""Replicas and shards train as one process does; a loss taken around its wrapper is noticed."""

import json
from typing import Any

import pytest
from torch.multiprocessing.spawn import spawn

from tests.loop.wrappers_work import CASES, WORLD, work

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("wrappers")
    spawn(work, (str(folder),), nprocs=WORLD)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_all_pairs(
    case: str, reports: list[dict[str, Any]]
) -> None:
    for report in reports:
        found = report[case]
        assert found["losses"] == pytest.approx(found["want"], rel=1e-5)
        assert found["error"] < 2e-5  # of the largest weight of the same parameter; fp32 rounding
        assert found["apart"] == 0.0


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("plain", ["ValueError", "never been called", "preference_loss"]),
        ("installed", ["ValueError", "never been called"]),
        ("unwrapped", ["ValueError", "never been called", "2 processes"]),
        ("a request, unwrapped", ["ValueError", "never been called", "2 processes"]),
        ("evaluated", ["not running", "model of its own", "preference_loss"]),
        ("the right way, then unwrapped", ["not running", "model of its own", "2 processes"]),
        ("no wrapper, installed", ["prefkit.install was called", "average the gradients"]),
    ],
)
def test_a_loss_around_its_wrapper_is_noticed(
    case: str, words: list[str], reports: list[dict[str, Any]]
) -> None:
    for report in reports:
        (said,) = report["around"][case]
        assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "case",
    [
        "the right way",
        "no gradient",
        "no wrapper",
        "evaluated, again",
        "unwrapped, again",
    ],
)
def test_nothing_is_said_of_what_is_right_or_was_said(
    case: str, reports: list[dict[str, Any]]
) -> None:
    assert [report["around"][case] for report in reports] == [[], []]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("fsdp2", ["TypeError", "DTensor", "preference_loss", "full_tensor"]),
        ("freed", ["ValueError", "not in memory", "preference_loss"]),
        ("fsdp1, not installed", ["ModelError", "FSDP version 1", "before you wrap it"]),
    ],
)
def test_weights_that_are_not_here_are_refused(
    case: str, words: list[str], reports: list[dict[str, Any]]
) -> None:
    for report in reports:
        (said,) = report["shards"][case]
        assert all(word in said for word in words), said
