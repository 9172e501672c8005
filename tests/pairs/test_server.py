"""A whole build through a real server process, which is killed, and by a builder that is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.pairs.pair_checker import faults
from tests.pairs.serving import Served, serving

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "prefkit" / "demo" / "assets" / "model"
QUESTIONS = ROOT / "examples" / "tiny_model" / "questions"


def command(out: Path, server: Served) -> list[str]:
    flags = f"--max_questions 10 --max_tokens 56 --samples 2 --rectifications 3 --out {out}"
    flags += f" --temperature 1 --top_p 1 --server {server.url} --model {MODEL}"
    return [sys.executable, "-m", "prefkit", "build", "step-dpo", str(QUESTIONS), *flags.split()]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rows(out: Path) -> set[str]:
    return set((out / "pairs.jsonl").read_text(encoding="utf-8").splitlines())


def kill_at(argv: list[str], journal: Path, count: int) -> None:
    """Starts a builder and kills it with -9 when its journal has so many lines."""
    builder = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    try:
        while lines(journal) < count:
            assert builder.poll() is None, "the builder ended by itself"
            assert time.monotonic() < until, "the builder does not go on"
            time.sleep(0.01)
        builder.send_signal(signal.SIGKILL)
    finally:
        builder.kill()
        builder.wait(timeout=20)


def restart_at(server: Served, journal: Path, count: int) -> None:
    """Kills the server with -9 when a journal has so many lines, and starts it again."""
    until = time.monotonic() + 120
    while lines(journal) < count and time.monotonic() < until:
        time.sleep(0.01)
    server.kill()
    time.sleep(1)
    server.start(wait=0)


@pytest.mark.slow
def test_a_killed_server_and_a_killed_builder_change_nothing(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with serving(MODEL, tmp_path) as server:
        subprocess.run(command(whole, server), check=True, timeout=240, capture_output=True)
        total = lines(whole / "completions.jsonl")
        journal = broken / "completions.jsonl"
        for part in (0.15, 0.35, 0.6):
            kill_at(command(broken, server), journal, int(part * total))
        saboteur = threading.Thread(target=restart_at, args=(server, journal, int(0.8 * total)))
        saboteur.start()
        done = subprocess.run(
            command(broken, server), timeout=300, capture_output=True, text=True, env=env
        )
        saboteur.join(timeout=60)
    assert done.returncode == 0, done.stderr
    assert rows(broken) == rows(whole)
    assert lines(journal) == total
    assert len(rows(whole)) >= 2
    for row in map(json.loads, rows(whole)):
        assert faults("step-dpo", row) == []
    assert json.loads((broken / "manifest.json").read_text())["runs"][-1]["engine"].startswith(
        "server"
    )
