"""Tokens of the same pairs on two processes give the loss and gradients of one."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing.spawn import spawn

from prefkit import DPO, fused_preference_loss
from tests.loss.sequence_parallel_work import OBJECTIVES, SPLITS, work, work_on_a_mesh
from tests.loss.test_objectives import sample

PROCESSES = 2


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One launch for all questions: starting the processes takes longer than answering."""
    folder = tmp_path_factory.mktemp("sequence_parallel")
    spawn(work, (PROCESSES, str(folder)), nprocs=PROCESSES)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_metrics_and_gradients_equal_one_process(
    name: str, reports: list[dict[str, Any]]
) -> None:
    for report in reports:
        cases = {case: e for case, e in report["errors"].items() if f" {name}, " in case}
        assert len(cases) == len(SPLITS) * (6 if OBJECTIVES[name].not_linear else 8)
        for case, errors in cases.items():
            bound = 1e-11 if "float64" in case else 5e-6
            for quantity, error in errors.items():
                assert error <= (0 if quantity == "between ranks" else bound), (case, quantity)


@pytest.mark.slow
def test_cached_references_divisors_and_evaluation(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert len(report["options"]) == 5
        for case, errors in report["options"].items():
            for quantity, error in errors.items():
                assert error < 1e-11, (case, quantity)


@pytest.mark.slow
def test_a_data_parallel_mean_needs_the_factor_of_the_group(reports: list[dict[str, Any]]) -> None:
    assert all(report["data parallel"] < 1e-11 for report in reports)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "mine", "theirs"),
    [
        ("no pairs_in_call", "needs pairs_in_call", ""),
        ("position", "use reduction='sequence'", ""),
        ("lengths", "ld_alpha: it counts the tokens of whole responses", ""),
        ("hooks", "pair_weights: they are made of whole responses", ""),
        ("other pairs", "rank 1 of the 2 of sequence_group has other pairs_in_call", "rank 0"),
        ("target", "targets[2] = 99", "rank 0 of the 2 of sequence_group refused"),
        ("negative weight", "weights[2] = -1.0", "rank 0 of the 2 of sequence_group refused"),
        ("segment", "segments must be below 4", "rank 0 of the 2 of sequence_group refused"),
        ("shape", "weights must have the shape", "rank 0 of the 2 of sequence_group refused"),
        ("nothing scored", "no scored token", ""),
        ("passes", "takes one pair a call, this one holds 2", ""),
        ("margins", "rank 1 of the 2 of sequence_group refused", "margins must have the shape"),
    ],
)
def test_what_one_rank_refuses_is_refused_on_both(
    mistake: str, mine: str, theirs: str, reports: list[dict[str, Any]]
) -> None:
    first, second = (report["messages"][mistake] for report in reports)
    assert mine in first
    assert (theirs or mine) in second


@pytest.mark.slow
def test_tokens_and_vocabulary_can_both_be_split(tmp_path: Path) -> None:
    spawn(work_on_a_mesh, (4, str(tmp_path)), nprocs=4)
    for rank in range(4):
        for case, errors in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert all(error < 1e-11 for error in errors.values()), (rank, case, errors)


def test_something_that_is_no_group_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence_group must be a ProcessGroup"):
        fused_preference_loss(
            objective=DPO(),
            pairs_in_call=2,
            sequence_group="world",  # type: ignore[arg-type]
            **sample(False),
        )
