"""The loops of examples/loops run as they are: in two processes as in one."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torchrun import ROOT, launch

LOOPS = ROOT / "examples/loops"
SHARED = {"shared", "decoder"}  # what the loops import
FABRIC = "Lightning Fabric is not installed, nor is it in any extra: pip install lightning"
NEEDED = {"with_fabric": ("lightning", FABRIC)}
pytestmark = pytest.mark.slow


def names() -> list[str]:
    return sorted(file.stem for file in LOOPS.glob("*.py") if file.stem not in SHARED)


def lines_of(output: str) -> list[dict[str, float]]:
    """What the processes printed, in the order of their ranks."""
    found = [json.loads(one) for one in re.findall(r'{"rank".*?}', output)]  # on one line or two
    return sorted(found, key=lambda line: line["rank"])


def alone(script: Path) -> "subprocess.CompletedProcess[str]":
    """The script in one process, without a launcher."""
    paths = [str(ROOT), str(ROOT / "kernels/torch-ext"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", names())
def test_two_processes_train_what_one_trains(name: str) -> None:
    package, reason = NEEDED.get(name, ("torch", ""))
    if importlib.util.find_spec(package) is None:
        pytest.skip(reason)
    script = LOOPS / f"{name}.py"
    runs = [alone(script), launch(2, script)]
    for run in runs:
        assert run.returncode == 0, run.stderr[-4000:]
    (one,), two = (lines_of(run.stdout) for run in runs)
    assert [line["rank"] for line in two] == [0, 1]
    assert two[0]["checksum"] == two[1]["checksum"]  # the replicas, bit for bit
    assert two[0]["loss"] == two[1]["loss"] == pytest.approx(one["loss"], rel=1e-6)
    # Adam makes steps of gradients that are nothing but rounding: not as near as the loss.
    assert two[0]["checksum"] == pytest.approx(one["checksum"], rel=1e-6)


@pytest.mark.parametrize("file", sorted(LOOPS.glob("*.py")), ids=lambda file: file.stem)
def test_a_loop_fits_the_eye(file: Path) -> None:
    assert len(file.read_text("utf-8").splitlines()) <= 60
