"""Compile every Triton kernel for GPUs that are not here; run as a process of its own.

    python -m tests.compile_kernels

Prints one JSON object a kernel and target: registers, shared memory in bytes, spilled bytes or
registers. The interpreter switch must be off in this process, hence the process.
"""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prefkit_kernels import rows_triton

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    "raw": "*fp32",
    "ref": "*fp32",
    "bias": "*fp32",
    "ref_bias": "*fp32",
    "targets": "*i64",
    "stats": "*fp32",
    "norms": "*fp32",
    "cotangents": "*fp32",
    "out": "*bf16",
}
FLOATS = ("scale", "softcap", "inv_temp")
# The two ways the project launches them: the loss of TDPO, and every output with every option.
VARIANTS = {
    "tdpo": {"HAS_REF": True, "LOGP": 0, "REF_LOGP": 1, "KL": 2},
    "all": {
        "HAS_REF": True,
        "HAS_BIAS": True,
        "HAS_REF_BIAS": True,
        "CAP": True,
        "LOGP": 0,
        "REF_LOGP": 1,
        "KL": 2,
        "REVERSE_KL": 3,
        "ENTROPY": 4,
        "LOG_SUM_SQ": 5,
    },
}
OFF = {"HAS_REF": False, "HAS_BIAS": False, "HAS_REF_BIAS": False, "CAP": False}
WIDTH = 128_256


def source(kernel: object, variant: dict) -> ASTSource:
    slots = dict.fromkeys(("LOGP", "REF_LOGP", "KL", "REVERSE_KL", "ENTROPY", "LOG_SUM_SQ"), -1)
    block, _ = rows_triton._launch(WIDTH)
    constants = {**OFF, **slots, **variant, "BLOCK": block}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in POINTERS:
            signature[name] = POINTERS[name]
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    return ASTSource(fn=kernel, signature=signature, constexprs=constants)


def resources(binary: object, target: GPUTarget) -> dict[str, int]:
    if target.backend == "hip":
        text = binary.asm["amdgcn"]
        found = {
            key: int(re.search(rf"\.{key}:\s+(\d+)", text)[1])
            for key in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
        }
        return {
            "registers": found["vgpr_count"],
            "shared": binary.metadata.shared,
            "spilled": found["vgpr_spill_count"] + found["sgpr_spill_count"],
        }
    tool = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump*"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {key: int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL")}
    return {
        "registers": found["REG"],
        "shared": binary.metadata.shared,
        "spilled": found["STACK"] + found["LOCAL"],
    }


def main() -> None:
    for kernel in (rows_triton._statistics_kernel, rows_triton._gradient_kernel):
        for variant, flags in VARIANTS.items():
            for name, target in TARGETS.items():
                _, warps = rows_triton._launch(WIDTH)
                options = {"num_warps": warps}
                binary = triton.compile(source(kernel, flags), target=target, options=options)
                row = {"kernel": kernel.__name__.strip("_"), "variant": variant, "target": name}
                print(json.dumps({**row, **resources(binary, target)}), flush=True)


if __name__ == "__main__":
    main()
