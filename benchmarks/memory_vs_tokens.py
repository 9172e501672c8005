"""Does any buffer grow with tokens × vocabulary? Peak memory of one loss, against the tokens.

    python -m benchmarks.memory_vs_tokens [--tokens 1024 2048 4096 8192] [--objective tdpo2]

For each N a fresh process runs forward + backward of `fused_preference_loss` and reports the most
memory it held above its inputs (peak resident size, reset just before). The slope between two N
is what one more token costs. Beside it: the bytes of a token's hidden state, its gradient and fp32
copies of both, which a fused loss may cost, and of one row of fp32 logits, which it may not.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

VOCAB, DIM = 128_256, 256


@dataclass(frozen=True)
class Point:
    """One measurement: tokens and bytes above the inputs."""

    tokens: int
    extra: int


def measure(tokens: int, objective: str, dtype: str, frozen: bool, budget_mib: int) -> Point:
    """Run one point in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory_vs_tokens", "--child", str(tokens)]
    command += ["--objective", objective, "--dtype", dtype, "--budget-mib", str(budget_mib)]
    command += ["--frozen"] if frozen else []
    # Freed buffers go back to the system at once, so that the peak is of what is really held.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return Point(**json.loads(done.stdout.splitlines()[-1]))


def allowed_bytes_a_token(dtype: str) -> int:
    """hidden + its gradient, in their dtype, + fp32 copies of both."""
    return DIM * 2 * ((2 if dtype == "bfloat16" else 4) + 4)


def _child(
    tokens: int, objective_name: str, dtype_name: str, frozen: bool, budget_mib: int
) -> None:
    import torch

    from prefkit import DPO, TDPO, fused_preference_loss

    dtype = getattr(torch, dtype_name)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, DIM).to(dtype).requires_grad_()
    weight = (torch.randn(VOCAB, DIM) * 0.1).to(dtype).requires_grad_(not frozen)
    targets = torch.randint(0, VOCAB, (tokens,))
    segments = torch.arange(tokens) // (tokens // 2)
    objective = DPO() if objective_name == "dpo" else TDPO()
    reference: dict[str, Any] = {"ref_logp": torch.zeros(tokens)}
    if objective.needs_kl:
        ref_hidden = hidden.detach() + 0.01
        reference = {"ref_hidden": ref_hidden, "ref_weight": weight.detach()}
    reference["memory_budget"] = budget_mib << 20
    few = slice(0, 64)  # warm up the libraries, and the weight's gradient, outside the measurement
    whole = ("ref_weight", "memory_budget")
    warm = {k: v if k in whole else v[few] for k, v in reference.items()}
    small = segments[few] * 0 + torch.arange(64) // 32
    fused_preference_loss(
        hidden[few], weight, targets[few], small, objective, **warm
    ).loss.backward()
    hidden.grad = weight.grad = None
    before = _reset_peak()
    out = fused_preference_loss(hidden, weight, targets, segments, objective, **reference)
    out.loss.backward()
    print(json.dumps({"tokens": tokens, "extra": _peak() - before}))


def _reset_peak() -> int:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--objective", choices=["dpo", "tdpo2"], default="tdpo2")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--frozen", action="store_true", help="frozen head (one pass)")
    parser.add_argument("--budget-mib", type=int, default=64, help="for logits buffers")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return _child(
            options.child, options.objective, options.dtype, options.frozen, options.budget_mib
        )
    points = [
        measure(n, options.objective, options.dtype, options.frozen, options.budget_mib)
        for n in options.tokens
    ]
    allowed = allowed_bytes_a_token(options.dtype)
    head = "frozen" if options.frozen else "trainable"
    print(f"{options.objective}, {options.dtype}, {head} head, V {VOCAB}, D {DIM}")
    print("  tokens  extra MB  bytes/token of allowed  N×V fp32 MB")
    for last, point in zip([None, *points], points, strict=False):
        slope = (point.extra - last.extra) / (point.tokens - last.tokens) if last else None
        cells = f"{slope:12.0f} {slope / allowed:10.2f}" if slope is not None else f"{'':>23}"
        full = point.tokens * VOCAB * 4 / 1e6
        print(f"{point.tokens:8d} {point.extra / 1e6:9.1f} {cells} {full:12.0f}")
    print(f"allowed: {allowed} bytes a token; one row of fp32 logits: {VOCAB * 4} bytes")


if __name__ == "__main__":
    main()
