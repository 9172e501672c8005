"""kill -9 of one rank: the job ends soon, says how to go on, and goes on to the same weights."""

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

from prefkit.train.checkpointing import checkpoint
from tests.train.trainer_cases import TREE_ROWS, save_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS, EVERY = 30, 5


def start(folder: Path, output: str, *more: str) -> subprocess.Popen:
    """`prefkit train` in two processes that shard the model."""
    options = {
        "model": folder / "model",
        "train_data": folder / "rows.jsonl",
        "output_dir": folder / output,
        "max_steps": STEPS,
        "save_steps": EVERY,
        "logging_steps": EVERY,
        "tokens_per_batch": 48,  # a question a row
        "learning_rate": 1e-2,
        "fsdp": "true",
        "disable_tqdm": "true",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    paths = [str(ROOT), str(ROOT / "kernels/torch-ext"), os.environ.get("PYTHONPATH", "")]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "prefkit.cli.main", "train", *flags, *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen, seconds: float) -> str:
    """The output of a process that must end within `seconds`."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()


def rank_of(launcher: subprocess.Popen, rank: int) -> int:
    """The process id of a rank under the launcher."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks in /proc")
def test_kill_9_of_one_rank(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TREE_ROWS))
    whole = start(tmp_path, "whole")
    output = finished(whole, 120)
    assert whole.returncode == 0, output[-3000:]

    killed: Any = start(tmp_path, "killed")
    deadline = time.monotonic() + 100
    while checkpoint.newest_complete(tmp_path / "killed")[0] is None:
        assert killed.poll() is None, killed.stdout.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(rank_of(killed, 1), signal.SIGKILL)
    died = time.monotonic()
    output = finished(killed, 60)
    assert time.monotonic() - died < 20  # seconds; it is below one where nothing else runs
    assert killed.returncode != 0
    newest, _ = checkpoint.newest_complete(tmp_path / "killed")
    assert newest is not None
    said = [line for line in output.splitlines() if line.startswith("prefkit: ")]
    assert len(said) == 1, output[-3000:]
    assert "Another process of this run is gone" in said[0] or "told to stop" in said[0]
    assert f"checkpoint is {newest}. Start the same command" in output
    assert "--resume_from_checkpoint auto" in output

    again = start(tmp_path, "killed", "--resume_from_checkpoint", "auto")
    output = finished(again, 120)
    assert again.returncode == 0, output[-3000:]
    assert f"Resuming from {newest}" in output
    want = load_file(tmp_path / "whole/model.safetensors")
    got = load_file(tmp_path / "killed/model.safetensors")
    begun = load_file(tmp_path / "model/model.safetensors")
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)
    assert not all(torch.equal(begun[name], value) for name, value in want.items())
