"""What all tests share: the interpreter switch for Triton, the real small model, the shared data.

`../shared` belongs to the developers; tests that need it are skipped, saying so, where it is not.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if other_trl := os.environ.get("PREFKIT_TRL"):  # a folder with another version of TRL
    sys.path.insert(0, other_trl)
    paths = (other_trl, os.environ.get("PYTHONPATH", ""))  # of the processes that tests start
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
if not torch.cuda.is_available():  # before anything imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real questions and real model solutions (GSM8K, MATH)."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs the developers' shared data (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder: PREFKIT_SMOLLM2, or built once and kept."""
    given = os.environ.get("PREFKIT_SMOLLM2")
    if given:
        return Path(given)
    script = SHARED / "tools" / "get_smollm2"
    if not script.exists():
        pytest.skip("needs SmolLM2-135M: set PREFKIT_SMOLLM2 to a folder that holds it")
    folder = ROOT / ".cache" / "smollm2"
    folder.parent.mkdir(exist_ok=True)
    with open(folder.parent / "smollm2.lock", "w") as lock:  # workers of one run build it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{script} failed:\n{done.stderr[-2000:]}")
    return folder
