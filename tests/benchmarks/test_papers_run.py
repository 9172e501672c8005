"""The papers' comparison as it runs: its journal, its processes, and all of it in small."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from benchmarks.papers.claims import CLAIMS, verdict
from benchmarks.papers.findings import collect
from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import METHODS, REGIMES
from benchmarks.papers.page import write_page
from benchmarks.papers.runs import Comparison, settings_of
from benchmarks.papers.task_order import Clock, Task, run
from benchmarks.papers.tasks import Size
from examples.tiny_model.line_model import Habit


def test_every_method_has_a_grid_of_the_same_size():
    assert {len(method.grid) for method in METHODS.values()} == {12}
    for method in METHODS.values():
        assert settings_of(method, 12) == method.grid
        assert len(set(settings_of(method, 4))) == 4


def test_a_journal_survives_a_torn_line_and_refuses_other_terms(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"seeds": (0, 1)})
    journal.add({"key": "a", "accuracy": 0.5})
    with path.open("a") as file:
        file.write('{"key": "b", "accu')
    again = Journal(path, {"seeds": (0, 1)})
    assert "a" in again
    assert "b" not in again
    again.add({"key": "b", "accuracy": 0.75})
    assert Journal(path, {"seeds": (0, 1)})["b"]["accuracy"] == 0.75
    with pytest.raises(ValueError, match="other terms"):
        Journal(path, {"seeds": (0, 1, 2)})


def _double(value: float) -> dict[str, float]:
    return {"accuracy": 2 * value}


def test_tasks_run_once_and_none_begins_out_of_time(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", {})
    tasks = [Task(f"t/{i}", _double, (i,), 1.0) for i in range(3)]
    run(tasks[:2], journal, Clock(1.0, 0, planned=3.0), tmp_path / "log")
    assert journal["t/1"]["accuracy"] == 2
    run(tasks, journal, Clock(-1.0, 1, planned=3.0), tmp_path / "log")
    assert "t/2" not in journal


_FAMILY = """
import sys
from pathlib import Path
from benchmarks.papers.journal import Journal
from benchmarks.papers.task_order import Clock, Task, run
from tests.benchmarks.test_papers_run import _wait

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tasks = [Task(f"t/{i}", _wait, (folder / str(i),), 1.0) for i in range(2)]
    run(tasks, Journal(folder / "journal.jsonl", {}), Clock(5.0, 2, planned=0.0), folder / "log")
"""


def _wait(path) -> dict:
    """Tells its process and works on for a minute."""
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    time.sleep(60)
    return {}


def _is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:  # a zombie has ended
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "family.py"
    script.write_text(_FAMILY)
    path = os.pathsep.join(p or os.getcwd() for p in (os.getcwd(), *sys.path))
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    told = [tmp_path / "0", tmp_path / "1"]
    try:
        until = time.monotonic() + 50
        while not all(file.exists() for file in told) and time.monotonic() < until:
            time.sleep(0.05)
        workers = [int(file.read_text()) for file in told]
        assert all(map(_is_running, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    until = time.monotonic() + 10
    while any(map(_is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [worker for worker in workers if _is_running(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


def test_the_whole_comparison_in_small(tmp_path):
    """Starts, builds, both trainers, measuring and the page; the ordering is not looked at."""
    regime = replace(
        REGIMES["main"],
        methods=("sft-own", "dpo", "step-dpo", "tdpo2"),
        extra=(("tdpo2", "dpo"),),
        habit=Habit(steps=16, batch_size=16, learning_rate=3e-4),
        questions=12,
        pairs=4,
        steps=2,
        batch_size=4,
    )
    size = Size(seeds=(0, 1), tuning_seeds=(9,), test=12, validation=8, along=8, points=1)
    comparison = Comparison((regime,), size, tmp_path / "work")
    journal = Journal(tmp_path / "journal.jsonl", comparison.terms())
    comparison.run(journal, Clock(10.0, 0, planned=0.0))
    kept = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    prepared = [line for line in kept if "/prepare/" in line.get("key", "")]
    assert len(prepared) == 3
    for line in prepared:
        assert line["kl"] == pytest.approx(0.0, abs=1e-6)
        for method, check in line["checks"].items():
            assert check["rows"] == check["sound"] == 4, method
    measured = [line for line in kept if "/measure/" in line.get("key", "")]
    assert all(line["kl"] > 0 for line in measured)
    page = tmp_path / "papers.md"
    assert page in write_page(comparison, journal, page)
    text = page.read_text()
    assert "| Step-DPO |" in text
    found = collect(comparison, regime, journal)
    lines = [verdict(claim, found) for claim in CLAIMS if claim.applies(found)]
    assert len(lines) == 5
    flowing = " ".join(text.split())  # the page is wrapped at 100 columns
    assert all(line in flowing for line in lines)
    assert flowing.count("Published:") == len(lines)
    assert "has a lower KL than DPO in" in text
    before = len(journal.records)
    comparison.run(journal, Clock(10.0, 0, planned=0.0))
    assert len(journal.records) == before
