"""Which machine and which source this is. Called itself it prints that as JSON, so that the process
that only waits for the steps never holds memory of the GPU."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.telling import REHEARSE

ROOT = Path(__file__).parents[2]
# What decides the numbers; the results that are written beside it are no part of it.
_SOURCES = ("prefkit", "kernels/torch-ext", "benchmarks")
_OURS = (REHEARSE, "TRITON_INTERPRET")  # said by a run, never taken over from outside


def source() -> str:
    """A hash of the Python files: the commit's stand-in where there is no git."""
    total = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def facts(device: str) -> dict[str, str]:
    """Hardware, versions, commit and source, in words."""
    from benchmarks import machine

    return {**machine.facts(device), "source": source()}


def of_gpu(env: Mapping[str, str]) -> dict[str, str] | None:
    """The facts of the first GPU that torch sees, found in a process of its own; None: there is
    none.

    Raises:
        RuntimeError: the process failed; with the last line that it said.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.card"]
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    return dict(found) if found else None


def slug(hardware: str) -> str:
    """A card in a file's name: "NVIDIA H100 80GB HBM3, 79 GiB" → "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", hardware.split(",")[0].lower()).strip("-")


def environment(rehearse: bool, site: Path | None = None) -> dict[str, str]:
    """For the steps: this source and the peers first, a rehearsal without any GPU."""
    paths = [str(ROOT), str(ROOT / "kernels" / "torch-ext")]
    paths = [*([str(site)] if site else []), *paths, os.environ.get("PYTHONPATH", "")]
    given = {name: value for name, value in os.environ.items() if name not in _OURS}
    env = {
        **given,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if rehearse:
        return {**env, REHEARSE: "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Chunks of several sizes come and go: without it the allocator's pieces do not fit the next.
    return {**env, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}


if __name__ == "__main__":
    import torch

    print(json.dumps(facts("cuda") if torch.cuda.is_available() else None))
