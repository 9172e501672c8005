"""TRL's script with prefkit's trainer: flags and YAML say the options of both."""

import json
from pathlib import Path

import pytest

from tests.train.trainer_cases import ROWS, save_model

trl = pytest.importorskip("trl", reason="TRL is not installed")


def test_flags_and_yaml_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prefkit.integrations.trl.__main__ import main

    model, rows, out = (tmp_path / name for name in ("model", "rows", "out"))
    save_model(model, scale=3.0)
    rows.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (rows / "train.jsonl").write_text(lines)
    (tmp_path / "run.yaml").write_text("prefkit_method: tdpo2\nprefkit_alpha: 0.25\n")
    given = {
        "config": tmp_path / "run.yaml",
        "model_name_or_path": model,
        "dataset_name": rows,
        "output_dir": out,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "append_eos": "never",
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
    }
    before = trl.DPOTrainer
    main([word for name, value in given.items() for word in (f"--{name}", str(value))])
    assert trl.DPOTrainer is before
    assert "kl/chosen" in capsys.readouterr().out
    assert (out / "model.safetensors").exists()
