"""The machine, whether its products are exact, and the two ceilings that everything is held to.

A device copy (bytes read and written) and an 8192³ bf16 product of random numbers: zeros would
multiply faster. What the kernels need of cuBLAS is asserted: without fp32 results they would be
several times slower and say so in a warning alone.
"""

import shutil
import subprocess
from functools import partial

import torch

from benchmarks.gpu.telling import Checks, device, median_ms, rehearsing, row, tell

_FIELDS = (
    *("name", "driver_version", "memory.total", "memory.used", "power.limit"),
    *("clocks.max.sm", "clocks.sm", "temperature.gpu", "mig.mode.current"),
)


def smi() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; empty where there is none."""
    if rehearsing() or shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=8)
    except (OSError, subprocess.TimeoutExpired) as error:  # the ceilings are worth more
        return {"nvidia-smi": f"{type(error).__name__}: {str(error)[:150]}"}
    if done.returncode:
        return {"nvidia-smi": (done.stderr or done.stdout).strip()[:200]}
    return dict(zip(_FIELDS, done.stdout.splitlines()[0].split(", "), strict=False))


def capabilities(where: str) -> dict[str, object]:
    """Multiprocessors, cache and what torch was built for."""
    if where == "cpu":
        return {"torch": torch.__version__}
    found = torch.cuda.get_device_properties(0)
    return {
        "torch sees": found.name,
        "compute capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "L2 MB": round(getattr(found, "L2_cache_size", 0) / 1e6),
        "free GB": round(torch.cuda.mem_get_info()[0] / 1e9, 1),
        "built for": " ".join(torch.cuda.get_arch_list()),
        "cuDNN": str(torch.backends.cudnn.version()),
    }


def fp32_results(dtype: torch.dtype, where: str) -> dict[str, object]:
    """Whether low-precision products come with fp32 results, and are added to fp32 matrices."""
    from prefkit_kernels.core import gemm

    place = (
        torch.device("cuda", torch.cuda.current_device())
        if where == "cuda"
        else torch.device(where)
    )
    gives, adds = gemm._gives_fp32(dtype, place), gemm._adds_to_fp32(dtype, place)
    if where == "cpu":  # products go by upcast slices there, whatever torch can
        return {"gives": gives, "adds": adds}
    # The result itself: with 8 bits 1/3 would come back wrong by 1e-3.
    a = torch.full((256, 256), 1 / 3, dtype=dtype, device=where)
    out = torch.empty(256, 256, device=where)
    gemm.project_(out, a, a)
    exact = 256 * float(a[0, 0]) ** 2
    off = abs(float(out[0, 0]) / exact - 1)
    return {"ok": gives and adds and off < 1e-6, "gives": gives, "adds": adds, "off": off}


def copy_rate(where: str, count: int) -> float:
    """TB/s of a copy of so many fp32 numbers, read and write counted."""
    source = torch.randn(count, device=where)
    target = torch.empty_like(source)
    return 2 * 4 * count / median_ms(lambda: target.copy_(source), where, 100) / 1e9


def product_rate(where: str, size: int) -> float:
    """TFLOP/s of a square bf16 product."""
    a, b = (torch.randn(size, size, device=where, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / median_ms(lambda: torch.mm(a, b, out=out), where, 200) / 1e9


def main() -> None:
    where = device()
    tell(machine=capabilities(where) | smi())
    for name, value in (capabilities(where) | smi()).items():
        row("The machine", fact=name, value=value)
    checks = Checks(where)
    for dtype in (torch.bfloat16, torch.float16):
        name = f"{str(dtype).removeprefix('torch.')} products give and add fp32"
        checks(name, partial(fp32_results, dtype, where), gpu_only=True)
    small = where == "cpu"
    row("Ceilings", what="device copy, TB/s", measured=copy_rate(where, 1 << (12 if small else 30)))
    size = 64 if small else 8192
    row("Ceilings", what=f"{size}³ bf16 product, TFLOP/s", measured=product_rate(where, size))
    checks.exit()


if __name__ == "__main__":
    main()
