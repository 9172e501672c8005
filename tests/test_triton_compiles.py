"""Every Triton kernel compiles for every supported GPU, with none present, and spills nothing."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


def test_every_kernel_compiles_without_a_spill() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.compile_kernels"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        print("{kernel:18} {variant:5} {target:7} {registers:4} registers".format(**row), end="")
        print(f" {row['shared']:5} B shared, {row['spilled']} spilled")
    assert len(rows) == 2 * 2 * 4
    assert all(row["spilled"] == 0 for row in rows)
