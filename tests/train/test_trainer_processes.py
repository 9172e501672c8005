"""Several processes give the numbers of one: losses, metrics, gradient norms, weights.

As replicas that each read their own rows, and in groups that share rows.
"""

import json
from pathlib import Path

import pytest

from tests.torchrun import ROOT, launched_once
from tests.train.trainer_processes_cases import CASES, SAVED, run

WORK = ROOT / "tests/train/trainer_processes_work.py"
OWN = ("second", "runtime", "memory", "preparation")  # parts of names of what no two runs share


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_several_processes_equal_one(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case, place = CASES[name], list(CASES).index(name)
    folder = launched_once(tmp_path_factory, case.processes, WORK)
    several = json.loads((folder / f"{place}.json").read_text())
    one = run(case, tmp_path, 1)
    near = 1e-5 if "sequence_parallel_size" in case.together else 1e-6
    assert several["weights"] == pytest.approx(one["weights"], rel=near)
    lines = zip([*several["logs"], several["eval"]], [*one["logs"], one["eval"]], strict=True)
    for got, want in lines:
        # A policy that is still its cached reference: rounding decides which reward is larger.
        ties = ("rewards/accuracies",) if abs(want.get("rewards/margins", 1.0)) < 1e-6 else ()
        for key, value in want.items():
            if key not in ties and not any(word in key for word in OWN):
                assert got[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    if "save_steps" in case.options:
        kept = folder / str(place) / f"checkpoint-{SAVED}"
        assert (kept / "prefkit_complete.json").is_file()
