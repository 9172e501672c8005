"""Every Triton kernel compiles for every supported GPU, with none present, and spills nothing."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

LINE = (
    "{kernel:13} {variant:16} {dz:4} {target:7} {block:5} columns {warps:3} warps "
    "{registers:4} registers {shared:5} B shared {spilled:3} spilled {occupancy}"
)
KERNELS = {"norms", "combine_norms", "class_sums", "gradient"}
ODD = (128_257, 32_001, 50_257, 151_936)
TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}


@pytest.mark.slow
def test_every_kernel_compiles_without_a_spill() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_kernels"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        share = f"{row['occupancy']:3} % occupancy" if "occupancy" in row else ""
        print(LINE.format(**{**row, "occupancy": share}))
    assert {(row["kernel"], row["target"]) for row in rows} == {
        (kernel, target) for kernel in KERNELS for target in TARGETS
    }
    gradients = {(row["variant"], row["dz"]) for row in rows if row["kernel"] == "gradient"}
    assert gradients >= {(v, d) for v in ("dpo", "tdpo", "all") for d in ("fp32", "bf16", "fp16")}
    assert all(row["spilled"] == 0 for row in rows)
    for row in rows:  # each row of logits and of dz, in accesses of 16 bytes alone
        if row["target"] == "sm_90" and row["kernel"] != "combine_norms":
            heads = 1 + (
                row["kernel"] == "class_sums" or row["variant"].startswith(("tdpo", "all"))
            )
            _check_accesses(row, heads if row["kernel"] != "norms" else 1)
    assert {v for v, _ in gradients} >= {f"{x}, V {n}" for x in ("dpo", "tdpo") for n in ODD}


def _check_accesses(row: dict[str, Any], heads: int) -> None:
    """Wide loads and stores as many as the block needs; narrow ones only of a number a row."""
    elements = row["block"] // (32 * row["warps"])  # of a thread and row
    biases = 2 if row["variant"] == "all" else 1
    found = row["accesses"]
    assert found["ld 16"] == heads * biases * elements // 4, row
    assert found.get("ld 4", 0) + found.get("ld 8", 0) <= 13, row
    if row["kernel"] == "gradient":
        assert found["st 16"] == elements * (4 if row["dz"] == "fp32" else 2) // 16, row
        assert found.get("st 4", 0) <= 1, row
