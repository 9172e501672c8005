"""TRL's tests in a process of their own, and two runs of them beside each other."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trl_suite import hub, source
from benchmarks.trl_suite.plugin import OUT, TRAINER

ROOT = Path(__file__).parents[2]
TRL = "trl.trainer.dpo_trainer:DPOTrainer"
PREFKIT = "prefkit.integrations.trl:DPOTrainer"


@dataclass(frozen=True)
class Outcome:
    """What became of one test.

    Attributes:
        outcome: passed, failed, skipped, xfailed or xpassed.
        said: the first line of what it failed of or was skipped for.
    """

    outcome: str
    said: str = ""


def run(
    trainer: str, repository: str, select: str | None = None, seconds: float = 3600
) -> dict[str, Outcome]:
    """Runs TRL's tests of its DPO trainer.

    Args:
        trainer: `package.module:Class`, what stands in the place of `trl.DPOTrainer`.
        repository: see `source.put_tests`.
        select: an expression for pytest's -k; None = all tests.
        seconds: the longest it may take.

    Returns:
        The outcome of each test by its id, such as "TestDPOTrainer::test_train_model".

    Raises:
        RuntimeError: pytest could not collect or run them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tests, out = source.put_tests(repository, folder), folder / "outcomes.json"
        hub.fill(folder / "hub")
        paths = [str(ROOT), str(ROOT / "kernels/torch-ext"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            TRAINER: trainer,
            OUT: str(out),
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, "-m", "pytest", str(tests), "-q", "--tb=line"]
        command += ["-p", "benchmarks.trl_suite.plugin", "-p", "no:cacheprovider"]
        command += ["-p", "no:xdist", "--rootdir", str(folder), "--basetemp", str(folder / "tmp")]
        command += ["-k", select] if select else []
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
        )
        if done.returncode not in (0, 1):
            raise RuntimeError(f"pytest failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        found = json.loads(out.read_text())
    return {name.split("::", 1)[1]: Outcome(**told) for name, told in found.items()}


def differences(trl: Mapping[str, Outcome], other: Mapping[str, Outcome]) -> list[str]:
    """Tests that TRL's trainer passes and another does not, or the other way round, in words."""
    told = []
    for name in sorted({*trl, *other}):
        theirs, ours = trl.get(name), other.get(name)
        if theirs is None or ours is None or theirs.outcome != ours.outcome:
            of_trl, of_other = (
                "not run" if one is None else f"{one.outcome} {one.said}".strip()
                for one in (theirs, ours)
            )
            told.append(f"{name}: TRL {of_trl}; here {of_other}")
    return told


def share(trl: Mapping[str, Outcome], other: Mapping[str, Outcome]) -> tuple[int, int]:
    """How many of the tests that TRL's trainer passes another passes, and how many those are."""
    passed = [name for name, one in trl.items() if one.outcome == "passed"]
    return sum(other[name].outcome == "passed" for name in passed if name in other), len(passed)
