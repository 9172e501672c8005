"""Where the time of an optimiser step goes on a GPU, by kind of kernel: prefkit's beside TRL's.

The steps of `trainers`, one of them under torch's profiler. What the kernels do not fill of the
step's time is the GPU waiting for Python ("idle"); the profiler itself adds to that.
"""

import contextlib
import re

from benchmarks.gpu.telling import device, row, tell
from benchmarks.gpu.trainers import SHAPES, WAYS, shrunk
from benchmarks.whole_step import Contestant, Shape

# By the first pattern that a kernel's name has.
_KINDS = (
    ("attention", r"flash|fmha|sdpa|attention"),
    ("rows of logits", r"^(norms|combine_norms|class_sums|gradient|normalisers)_kernel"),
    ("products", r"gemm|nvjet|cutlass|xmma|cublas|gemv|splitK"),
    ("optimiser, clipping", r"adam|multi_tensor|foreach|norm_?kernel.*lp|LpNorm"),
    ("copies, casts", r"memcpy|memset|copy|CatArray|fill"),
    ("gathers", r"index|gather|scatter|embedding"),
    ("reductions", r"reduce|softmax|scan"),
    ("elementwise", r"elementwise|vectorized"),
)
_STEPS = 4
_LONGEST = 12  # kernels told by name


def kind(name: str) -> str:
    """What a kernel does, by its name."""
    for found, pattern in _KINDS:
        if re.search(pattern, name, re.IGNORECASE):
            return found
    return "other"


def show(shape: Shape, way: str, one: Contestant) -> None:
    """The step's time by kind, and its longest kernels."""
    times: dict[str, float] = {}
    for name, milliseconds, _ in one.kernels:
        times[kind(name)] = times.get(kind(name), 0.0) + milliseconds
    step = 1e3 * one.seconds[-1]
    filled = sum(times.values())
    plain = 1e3 * min(one.seconds[1:-1])
    ordered = {name: round(times.get(name, 0.0), 1) for name, _ in _KINDS}
    other = round(times.get("other", 0.0), 1)
    cells = {**ordered, "other": other, "idle": round(max(0.0, step - filled), 1)}
    title = f"Milliseconds of a step, {shape.words}"
    row(title, way=way, step=round(plain, 1), profiled=round(step, 1), **cells)
    for name, milliseconds, count in one.kernels[:_LONGEST]:
        tell(kernel=name, way=way, shape=shape.words, ms=round(milliseconds, 2), calls=count)


def profiled(shape: Shape) -> list[str]:
    """Both trainers at one shape; returns what failed, in words."""
    running = {way: Contestant(way, shape, None, _STEPS, False, True) for way in WAYS}
    failed = []
    try:
        for way, one in running.items():
            try:
                one.ready()
                for _ in range(_STEPS):
                    one.step()
                show(shape, way, one)
            except (RuntimeError, OSError) as error:
                failed.append(f"{way}: {(str(error).splitlines() or ['?'])[-1][:200]}")
            one.process.kill()
    finally:
        for one in running.values():
            one.process.kill()
            with contextlib.suppress(OSError):
                one.process.wait(5)
    return failed


def main() -> None:
    where = device()
    shapes = [shrunk(SHAPES[0])] if where == "cpu" else list(SHAPES)[::-1]
    failed = [line for shape in shapes for line in profiled(shape)]
    if any(not line.startswith("trl: ") or "No module" not in line for line in failed):
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
