"""Where the time of an optimiser step goes on a GPU, by kind of kernel.

`trainers` takes one step more of each trainer, under torch's profiler. What the kernels do not fill
of its time is the GPU waiting for Python ("idle"); the profiler itself adds to that.
"""

import re

from benchmarks.gpu.telling import row, tell
from benchmarks.whole_step.shapes import Shape
from benchmarks.whole_step.turns import Contestant

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
_LONGEST = 12  # kernels told by name


def kind(name: str) -> str:
    """What a kernel does, by its name."""
    for found, pattern in _KINDS:
        if re.search(pattern, name, re.IGNORECASE):
            return found
    return "other"


def show(shape: Shape, way: str, one: Contestant, plain: float) -> None:
    """The last step's time by kind, and its longest kernels.

    Args:
        plain: seconds of a step without the profiler.
    """
    times: dict[str, float] = {}
    for name, milliseconds, _ in one.kernels:
        times[kind(name)] = times.get(kind(name), 0.0) + milliseconds
    step = 1e3 * one.seconds[-1]
    names = [*(name for name, _ in _KINDS), "other"]
    cells = {name: round(times.get(name, 0.0), 1) for name in names}
    idle = round(max(0.0, step - sum(times.values())), 1)
    title = f"Milliseconds of a step under the profiler, by kind of kernel: {shape.words}"
    row(title, way=way, plain=round(1e3 * plain, 1), profiled=round(step, 1), **cells, idle=idle)
    for name, milliseconds, count in one.kernels[:_LONGEST]:
        tell(kernel=name, way=way, shape=shape.words, ms=round(milliseconds, 2), calls=count)
