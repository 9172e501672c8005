"""Compile every Triton kernel for GPUs that are not here; run as a process of its own.

    python -m tests.kernels.compile_kernels            # all targets, the project's launches
    python -m tests.kernels.compile_kernels --sweep    # other launches, on sm_90 alone

Prints one JSON object a kernel and target: registers a thread, shared memory in bytes, spilled
bytes or registers, and on NVIDIA the share of an SM's threads that registers leave room for. The
interpreter switch must be off in this process, hence the process.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prefkit_kernels.backends.triton import class_sums_kernel, gradient_kernel, normalisers_kernel
from prefkit_kernels.backends.triton.launch import Launch, launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS: dict[str, Any] = {
    "norms": normalisers_kernel.norms_kernel,
    "combine_norms": normalisers_kernel.combine_norms_kernel,
    "class_sums": class_sums_kernel.class_sums_kernel,
    "gradient": gradient_kernel.gradient_kernel,
}
FLOATS = ("scale", "softcap", "inv_temp")
ROW_POINTERS = ("raw", "ref", "bias", "ref_bias", "dz")
NUMBER_POINTERS = ("stats", "norms", "cotangents", "partial", "out")
# Multiples of 16 in every vocabulary that matters, so that loads are 128 bits wide.
ALIGNED_PADDED = (*ROW_POINTERS, "raw_stride", "ref_stride", "dz_stride")
ALIGNED = (*ALIGNED_PADDED, "width", "ref_width")
SLOTS = ("LOGP", "KL", "REVERSE_KL", "ENTROPY", "LOG_SUM_SQ")
PADDED: dict[str, Any] = {"PAD": True, "REF_PAD": True, "DZ_PAD": True}
OFF = dict.fromkeys(("BIAS", "REF_BIAS", "SCALE", "CAP", "SUM", "KL_SUM", *PADDED), False)
EVERY_OPTION = {"BIAS": True, "REF_BIAS": True, "SCALE": True, "CAP": True}
EVERY_SUM = {name: k for k, name in enumerate(SLOTS[1:])}
EVERY_SLOT = {name: k for k, name in enumerate(SLOTS)}
WIDTH = 128_256
# Two with a token more than a multiple of 16, GPT-2's, and Qwen2's, which needs no padding.
ODD_VOCABULARIES = (128_257, 32_001, 50_257, 151_936)


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel, what it is asked for, the gradient's dtype, its launch."""

    kernel: str
    variant: str
    how: Launch
    flags: dict[str, Any] = field(default_factory=dict)
    dz: str = "fp32"
    vocab: int = WIDTH


def cases() -> Iterator[Case]:
    """What DPO, TDPO and a call for everything launch; a vocabulary that 16 does not divide."""
    one, two = (launch(WIDTH, heads) for heads in (1, 2))
    tdpo = {"LOGP": 0, "KL": 1, "KL_SUM": True}
    everything = {**EVERY_OPTION, **EVERY_SLOT, "KL_SUM": True}
    yield Case("norms", "plain", one)
    yield Case("norms", "mean", one, {"SUM": True})
    yield Case("norms", "all", one, {**EVERY_OPTION, "SUM": True})
    yield Case("combine_norms", "", Launch(0, normalisers_kernel.COMBINING_WARPS))
    yield Case("class_sums", "kl", two, {"KL": 0})
    yield Case("class_sums", "all", two, {**EVERY_OPTION, **EVERY_SUM})
    for dz in ("fp32", "bf16", "fp16"):
        yield Case("gradient", "dpo", one, {"LOGP": 0}, dz)
        yield Case("gradient", "tdpo", two, tdpo, dz)
        yield Case("gradient", "all", two, everything, dz)
    for vocab in ODD_VOCABULARIES:
        one, two = (launch(vocab, heads) for heads in (1, 2))
        yield Case("norms", f"V {vocab}", one, PADDED, vocab=vocab)
        yield Case("norms", f"mean, V {vocab}", one, {**PADDED, "SUM": True}, vocab=vocab)
        yield Case("class_sums", f"V {vocab}", two, {**PADDED, "KL": 0}, vocab=vocab)
        yield Case("gradient", f"dpo, V {vocab}", one, {**PADDED, "LOGP": 0}, "bf16", vocab)
        yield Case("gradient", f"tdpo, V {vocab}", two, {**PADDED, **tdpo}, "bf16", vocab)


def sweep() -> Iterator[Case]:
    """Other launches of the kernels that need most registers."""
    tdpo = {"LOGP": 0, "KL": 1, "KL_SUM": True}
    everything = {**EVERY_OPTION, **EVERY_SLOT, "KL_SUM": True}
    for block, warps in ((1024, 4), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (4096, 16)):
        how = Launch(block, warps)
        yield Case("norms", "plain", how)
        yield Case("class_sums", "kl", how, {"KL": 0})
        yield Case("gradient", "dpo", how, {"LOGP": 0}, "bf16")
        yield Case("gradient", "tdpo", how, tdpo, "bf16")
        yield Case("gradient", "all", how, everything, "bf16")


def compile_(case: Case, target: GPUTarget) -> Any:
    function = KERNELS[case.kernel]
    tile = {"ROWS": normalisers_kernel.COMBINED, "BLOCKS": normalisers_kernel.COMBINED}
    given = {**OFF, **dict.fromkeys(SLOTS, -1), **case.flags, **tile, "BLOCK": case.how.block}
    constants = {name: given[name] for name in function.arg_names if name in given}
    types = {
        **dict.fromkeys(constants, "constexpr"),
        **dict.fromkeys(FLOATS, "fp32"),
        **dict.fromkeys((*ROW_POINTERS, *NUMBER_POINTERS), "*fp32"),
        "dz": f"*{case.dz}",
        "targets": "*i64",
    }
    signature = {name: types.get(name, "i32") for name in function.arg_names}
    # As a launch sees them: rows of a buffer are padded, so that their stride is a multiple of 16.
    known = ALIGNED if case.vocab % 16 == 0 else ALIGNED_PADDED
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(function.arg_names)
        if name in known
    }
    source = ASTSource(function, signature, constants, attributes)
    options = {"num_warps": case.how.warps, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


def resources(binary: Any, target: GPUTarget) -> dict[str, int]:
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
        "occupancy": occupancy(found["REG"], binary.metadata.num_warps),
    }


def accesses(ptx: str) -> dict[str, int]:
    """How many loads and stores of global memory a thread has, by the bytes of each."""
    found: dict[str, int] = {}
    pattern = r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.[a-z](\d+)\b"
    for kind, vector, bits in re.findall(pattern, ptx):
        name = f"{kind} {int(vector or 1) * int(bits) // 8}"
        found[name] = found.get(name, 0) + 1
    return found


def occupancy(registers: int, warps: int) -> int:
    """Percent of the 64 warps of an SM (8.0, 9.0 and 10.0 alike) that can be resident.

    A warp takes its 32 × registers in units of 256, out of 65536; an SM holds at most 32 programs.
    """
    per_warp = -(-registers * 32 // 256) * 256
    programs = min(65536 // per_warp // warps, 64 // warps, 32)
    return 100 * programs * warps // 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="other launches, sm_90 alone")
    swept = parser.parse_args().sweep
    targets = {"sm_90": TARGETS["sm_90"]} if swept else TARGETS
    for case in sweep() if swept else cases():
        for name, target in targets.items():
            row = {
                "kernel": case.kernel,
                "variant": case.variant,
                "dz": case.dz if case.kernel == "gradient" else "",
                "target": name,
                "block": case.how.block,
                "warps": case.how.warps,
            }
            binary = compile_(case, target)
            row |= resources(binary, target)
            if target.backend == "cuda":
                row["accesses"] = accesses(binary.asm["ptx"])
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
