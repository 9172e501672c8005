"""Several processes of a test, started as users start them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]


def launch(
    processes: int, script: Path, *arguments: str, seconds: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Runs a script in gloo processes of one thread under torchrun, from this checkout.

    Args:
        processes: how many.
        script: what each of them runs.
        arguments: its command line.
        seconds: the longest it may take.
    """
    paths = [str(ROOT), str(ROOT / "kernels/torch-ext"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [sys.executable, *start, str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def launched_once(factory: pytest.TempPathFactory, processes: int, script: Path) -> Path:
    """The folder that a launch has filled: one launch, however many workers the tests run in.

    Args:
        factory: pytest's.
        processes: how many.
        script: what each of them runs; its argument is the folder.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / f"{script.stem}-{processes}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            done = launch(processes, script, str(folder))
            assert done.returncode == 0, done.stderr[-6000:]
            (folder / "done").touch()
    return folder
