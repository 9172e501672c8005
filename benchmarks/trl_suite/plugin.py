"""Loaded by pytest for TRL's tests: another trainer, stand-ins of datasets, outcomes noted."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

TRAINER = "PREFKIT_SUITE_TRAINER"  # package.module:Class, in the place of trl.DPOTrainer
OUT = "PREFKIT_SUITE_OUT"  # the file that takes what became of each test
_found: dict[str, dict[str, str]] = {}


def pytest_configure() -> None:
    """Before any test is imported, which takes the names from `trl` and `datasets`."""
    import datasets
    import torch
    import trl

    from benchmarks.trl_suite import rows

    asked = importlib.import_module("trl.import_utils")
    # Tests of another version may ask about packages that this one does not.
    asked.__getattr__ = _nothing_else_is_there
    if not torch.cuda.is_available():  # its kernels would stay in the classes for later tests
        asked.is_liger_kernel_available = lambda *_: False
    datasets.load_dataset = rows.load_dataset
    module, _, name = os.environ[TRAINER].partition(":")
    trl.DPOTrainer = getattr(importlib.import_module(module), name)


def _nothing_else_is_there(name: str) -> Any:
    if name.startswith("is_") and name.endswith("_available"):
        return lambda: False
    raise AttributeError(name)


def pytest_runtest_logreport(report: Any) -> None:
    """A test's worst phase says what became of it."""
    before = _found.get(report.nodeid, {}).get("outcome")
    if before is None or before == "passed":
        outcome = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if report.skipped else "xpassed"
        said = getattr(report.longrepr, "reprcrash", None) or report.longrepr or ""
        lines = str(getattr(said, "message", said)).strip().splitlines()
        _found[report.nodeid] = {"outcome": outcome, "said": lines[0] if lines else ""}


def pytest_sessionfinish() -> None:
    Path(os.environ[OUT]).write_text(json.dumps(_found))
