"""The Trainer sharded over two gloo processes by FSDP2 gives the run of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.torchrun import ROOT, launched_once
from tests.train.trainer_cases import tiny_model
from tests.train.trainer_fsdp2_cases import CASES, SAVED, run

pytestmark = pytest.mark.slow
CHANGING = ("second", "runtime", "memory", "epoch")  # parts of names of what no two runs share


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes have run every case: `N.pt`, and `N/final`."""
    return launched_once(tmp_path_factory, 2, ROOT / "tests/train/trainer_fsdp2_work.py")


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """What two processes found, what one finds, and the folder of the two."""
    place = list(CASES).index(request.param)
    alone = run(CASES[request.param], tmp_path_factory.mktemp("alone"))
    return torch.load(folder / f"{place}.pt"), alone, folder / str(place)


def largest_error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Over all parameters, relative to the largest number of each."""
    assert got.keys() == want.keys()
    scales = {name: value.abs().max().clamp_min(1e-12) for name, value in want.items()}
    return max(float((got[name] - want[name]).abs().max() / scales[name]) for name in want)


def test_logs_and_weights_are_those_of_one_process(pair: Any) -> None:
    two, one, _ = pair
    assert min(two["shards"]) > 10  # of about twenty parameters: neither model is in replicas
    assert one["shards"] == [0, 0]
    assert len(two["logs"]) == len(one["logs"]) > 4
    for got, want in zip(two["logs"], one["logs"], strict=True):
        names = [name for name in want if not any(word in name for word in CHANGING)]
        assert "grad_norm" in names or "eval_rewards/margins" in names
        for name in names:
            assert got[name] == pytest.approx(want[name], rel=1e-5, abs=1e-6), name
    assert largest_error(two["weights"], one["weights"]) < 2e-5


def test_resuming_gives_the_uninterrupted_weights(pair: Any) -> None:
    two, one, _ = pair
    assert two["resumed_at"] == one["resumed_at"] == SAVED
    assert largest_error(two["resumed"], two["weights"]) < 2e-6


def test_the_final_save_is_a_model_folder(pair: Any, request: pytest.FixtureRequest) -> None:
    two, _, folder = pair
    final = folder / "final"
    if (final / "adapter_config.json").is_file():
        from peft import PeftModel

        loaded: Any = PeftModel.from_pretrained(tiny_model(scale=3.0), final, is_trainable=True)
    else:
        kind = next(iter(two["weights"].values())).dtype
        loaded = AutoModelForCausalLM.from_pretrained(final, dtype=kind)
    weights = {name: value.detach() for name, value in loaded.named_parameters()}
    assert largest_error(weights, two["weights"]) == 0.0
    assert not any(path.name == ".saving" for path in final.iterdir())
