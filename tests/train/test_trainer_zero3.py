"""ZeRO-3 over two gloo processes trains the model of one process; needs DeepSpeed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.trainer_cases import ROWS, save_model

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS, SAVED = 4, 2


def train(folder: Path, output: str, processes: int, **options: Any) -> dict[str, torch.Tensor]:
    """`prefkit train` with four pairs a step; returns the weights that it saved."""
    options |= {
        "model": folder / "model",
        "train_data": folder / "rows.jsonl",
        "output_dir": folder / output,
        "max_steps": STEPS,
        "save_steps": SAVED,
        "per_device_train_batch_size": 4 // processes,
        "learning_rate": 1e-2,
        "optim": "adamw_torch",
        "disable_tqdm": "true",
    }
    start = [sys.executable, "-m"]
    if processes > 1:
        options["deepspeed"] = ROOT / "examples/accelerate/zero3.json"
        start += ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    paths = [str(ROOT), str(ROOT / "kernels/torch-ext"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*start, "prefkit.cli.main", "train", *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    weights = "adapter_model" if options.get("adapter") else "model"
    return load_file(folder / output / f"{weights}.safetensors")


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over all weights."""
    return sum(float((one[name] - two[name]).double().square().sum()) for name in one) ** 0.5


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"method": "dpo"}),
        ("llama-tied", {"method": "tdpo2"}),
        ("llama", {"method": "tdpo2", "adapter": "lora"}),
    ],
    ids=str,
)
def test_two_processes_train_the_model_of_one(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    save_model(tmp_path / "model", family)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    one = train(tmp_path, "one", 1, **options)
    two = train(tmp_path, "two", 2, **options)
    assert one.keys() == two.keys()
    # Norms over all weights: Adam makes whole steps of gradients that are rounding and no more,
    # such as those of a token that never occurs, so that single weights tell nothing.
    assert distance(two, one) < 1e-5 * distance(one, {name: 0 * one[name] for name in one})
    shutil.rmtree(tmp_path / "two" / f"checkpoint-{STEPS}")
    again = train(tmp_path, "two", 2, resume_from_checkpoint="auto", **options)
    for name, value in two.items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-7, msg=name)
