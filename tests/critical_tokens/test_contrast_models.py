"""cDPO's two models: trained once, gone on with after a kill, and different from one another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefkit.critical_tokens import score_pairs
from prefkit.critical_tokens.contrast import ContrastModels, ContrastSettings, train_two_models
from prefkit.errors import ConfigError, PrefkitError, RowError
from prefkit.train.checkpointing import checkpoint
from tests.train.trainer_cases import save_model

ROOT = Path(__file__).parents[2]
RIGHT = [{"prompt": f"{a}+{b}=", "response": f" {a + b}"} for a in range(8) for b in range(3)]
WRONG = [{**row, "response": row["response"] + "1"} for row in RIGHT[:10]]
SETTINGS: dict[str, Any] = {"adapter": "none", "learning_rate": 1e-2, "batch_size": 4, "epochs": 3}


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_two_models_whose_contrast_tells(
    adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model(tmp_path / "model", scale=3.0)
    settings = ContrastSettings(**{**SETTINGS, "adapter": adapter, "device_batch_size": 2})
    made = train_two_models(RIGHT, WRONG, model, tmp_path / "out", settings)
    records = made.records()
    assert records["positive"]["steps"] == 18
    assert (records["positive"]["rows"], records["negative"]["rows"]) == (24, 10)
    assert records["positive"]["loss_last"] < records["positive"]["loss_first"]
    assert checkpoint.list_checkpoints(made.positive) == []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # nothing is loaded again
    assert train_two_models(RIGHT, WRONG, model, tmp_path / "out", settings) == made
    monkeypatch.undo()
    assert made.records() == records
    name = "adapter_model" if adapter == "lora" else "model"
    weights = [load_file(folder / f"{name}.safetensors") for folder in made]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    rows = [
        {"prompt": r["prompt"], "chosen": r["response"], "rejected": r["response"] + "1"}
        for r in RIGHT
    ]
    scored = score_pairs(rows, *map(str, made))
    extra = [row["rejected_weights"]["weights"][-1] for row in scored.rows]
    first = [row["rejected_weights"]["weights"][0] for row in scored.rows]
    if adapter == "none":
        assert sum(extra) > sum(first)


def test_what_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    settings = ContrastSettings(**{**SETTINGS, "epochs": 1})
    with pytest.raises(PrefkitError, match="no wrong solution"):
        train_two_models(RIGHT, [], model, tmp_path / "out", settings)
    with pytest.raises(RowError, match="row 1, field 'response'"):
        train_two_models([RIGHT[0], {"prompt": "a"}], WRONG, model, tmp_path / "bad", settings)
    train_two_models(RIGHT[:4], WRONG[:4], model, tmp_path / "out", settings)
    with pytest.raises(ConfigError, match="other solutions"):
        train_two_models(RIGHT[:5], WRONG[:4], model, tmp_path / "out", settings)
    for changes, said in (
        ({"adapter": "qlora"}, "adapter is 'qlora'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 6, "device_batch_size": 4}, "must divide batch_size"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            ContrastSettings(**changes)


SCRIPT = """
import sys
from tests.critical_tokens.test_contrast_models import start
start(sys.argv[1], sys.argv[2])
"""


def start(model: str, out: str) -> ContrastModels:
    settings = ContrastSettings(**{**SETTINGS, "epochs": 4, "save_steps": 2})
    return train_two_models(RIGHT, WRONG, model, out, settings)


def test_killed_in_the_second_model(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    whole = start(model, str(tmp_path / "whole"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels/torch-ext'}"}
    command = [sys.executable, "-c", SCRIPT, model, str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while checkpoint.newest_complete(tmp_path / "killed" / "negative")[0] is None:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = (tmp_path / "killed" / "positive" / "contrast.json").read_text()
    assert not json.loads((tmp_path / "killed" / "negative" / "contrast.json").read_text())[
        "finished"
    ]
    resumed = start(model, str(tmp_path / "killed"))
    assert resumed.positive.joinpath("contrast.json").read_text() == first
    assert resumed.records()["negative"]["resumed_from"] >= 2
    for one, two in zip(whole, resumed, strict=True):
        want, got = (load_file(folder / "model.safetensors") for folder in (one, two))
        for name, value in want.items():
            assert torch.equal(got[name], value), name
