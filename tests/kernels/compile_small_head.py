"""Compile the small-head kernels for GPUs that are not here; run as a process of its own.

    python -m tests.kernels.compile_small_head            # all targets, the project's tiles
    python -m tests.kernels.compile_small_head --sweep    # other tiles, plain bf16
    python -m tests.kernels.compile_small_head --sweep --target sm_90

Prints one JSON object a kernel and target, as `tests.kernels.compile_kernels` does, with the shared
memory that the target has, and on NVIDIA the instructions of the whole kernel by kind.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.kernels.compile_kernels import FLOATS, TARGETS, resources  # isort: skip (sets the switch)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prefkit_kernels.backends.triton.small_head.gradient_kernel import gradient_kernel
from prefkit_kernels.backends.triton.small_head.launch import Tile, group, tile
from prefkit_kernels.backends.triton.small_head.normalisers_kernel import normalisers_kernel

# Shared memory that one program may take, bytes.
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
OPERANDS = ("hidden", "weight", "bias", "ref_hidden", "ref_weight", "ref_bias")
NUMBERS = ("norms", "cotangents", "partial", "out")
# What 16 divides in every head that matters.
ALIGNED = (
    *(*OPERANDS, "dz", "dz_stride", "hidden_stride", "weight_stride"),
    *("ref_hidden_stride", "ref_weight_stride"),
)
ALIGNED_WIDTHS = ("width", "ref_width", "columns_end")
OFF: dict[str, Any] = {
    **dict.fromkeys(("BIAS", "REF_BIAS", "SCALE", "CAP", "UPCAST"), False),
    **dict.fromkeys(("DZ_PAD", "KL_SUM", "SUM"), False),
    **{"LOGP": -1, "KL": -1},
}
EVERY_OPTION = {"BIAS": True, "REF_BIAS": True, "SCALE": True, "CAP": True}
DPO = {"LOGP": 0}
TDPO = {"LOGP": 0, "KL": 1, "KL_SUM": True}
KERNELS: dict[str, Any] = {"normalisers": normalisers_kernel, "gradient": gradient_kernel}
DIM, VOCAB, ODD_VOCAB = 576, 49_152, 50_257


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel, what it is asked for, its heads and operands, the tile."""

    kernel: str
    variant: str
    heads: int
    how: Tile | None = None  # the project's by default
    flags: dict[str, Any] = field(default_factory=dict)
    dtype: str = "bf16"
    dim: int = DIM
    vocab: int = VOCAB


def cases() -> Iterator[Case]:
    """What DPO, TDPO and their options launch, and sizes that neither tile nor 16 divides."""
    plain = (
        ("normalisers", "plain", 1, {}),
        ("normalisers", "mean", 1, {"SUM": True}),
        ("gradient", "dpo", 1, DPO),
        ("gradient", "tdpo", 2, TDPO),
    )
    for kernel, variant, heads, flags in plain:
        yield Case(kernel, variant, heads, flags=flags)
        yield Case(kernel, variant, heads, flags=flags, dtype="fp16")
        yield Case(kernel, variant, heads, flags=flags, dim=1024)
        padded = {**flags, "DZ_PAD": True}
        yield Case(kernel, f"{variant}, odd", heads, flags=padded, dim=80, vocab=ODD_VOCAB)
        biased = {**flags, "BIAS": True, "REF_BIAS": True, "SCALE": True}
        yield Case(kernel, f"{variant}, bias, scale", heads, flags=biased)
        capped = {**padded, **EVERY_OPTION}
        yield Case(kernel, f"{variant}, softcap, odd", heads, flags=capped, vocab=ODD_VOCAB)
    yield Case("gradient", "kl", 2, flags={"KL": 0})


def sweep() -> Iterator[Case]:
    for tokens, classes, depth, warps, stages in (
        *((128, 256, 64, 8, s) for s in (2, 3, 4)),
        *((128, 128, 64, 4, s) for s in (2, 3)),
        *((128, 128, 64, 8, s) for s in (2, 3)),
        *((128, 128, 32, 4, s) for s in (3, 4)),
        *((256, 128, 64, 8, 3), (64, 256, 64, 4, 3), (64, 128, 64, 4, 3), (64, 128, 32, 4, 2)),
    ):
        how = Tile(tokens, classes, depth, warps, stages)
        yield Case("normalisers", "plain", 1, how)
        yield Case("gradient", "dpo", 1, how, DPO)
        yield Case("gradient", "tdpo", 2, how, TDPO)
        yield Case("gradient", "tdpo", 2, replace(how, halves=True), TDPO)


def compile_(case: Case, how: Tile, target: GPUTarget) -> Any:
    function = KERNELS[case.kernel]
    given = {
        **{**OFF, **case.flags, "D": case.dim, "REF_D": case.dim},
        **{"BLOCK_C": how.tokens, "BLOCK_V": how.classes, "BLOCK_D": how.depth},
        "GROUP": group(case.dim, 2, how),
        "HALVES": how.halves,
    }
    constants = {name: given[name] for name in function.arg_names if name in given}
    types = {
        **dict.fromkeys(constants, "constexpr"),
        **dict.fromkeys(FLOATS, "fp32"),
        **dict.fromkeys(NUMBERS, "*fp32"),
        **dict.fromkeys((*OPERANDS, "dz"), f"*{case.dtype}"),
        **{"bias": "*fp32", "ref_bias": "*fp32", "targets": "*i64"},
    }
    signature = {name: types.get(name, "i32") for name in function.arg_names}
    known = (*ALIGNED, *ALIGNED_WIDTHS) if case.vocab % 16 == 0 else ALIGNED
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(function.arg_names)
        if name in known
    }
    source = ASTSource(function, signature, constants, attributes)
    options = {"num_warps": how.warps, "num_stages": how.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


def instructions(binary: Any) -> dict[str, int]:
    """Instructions of the kernel by kind, as written (a loop's body once)."""
    tool = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump*"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(tool), "-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]+)", text)
    found = {"all": len(names)}
    for kind in ("MUFU", "HGMMA", "HMMA", "UTCHMMA", "STG", "LDGSTS", "LDG"):
        found[kind] = names.count(kind)
    return {kind: count for kind, count in found.items() if count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="other tiles")
    parser.add_argument("--target", choices=TARGETS, help="this target alone")
    given = parser.parse_args()
    for case in sweep() if given.sweep else cases():
        for name, target in TARGETS.items():
            if given.target not in (None, name):
                continue
            how = case.how or tile(
                case.heads,
                2,
                SHARED[name],
                gradient=case.kernel == "gradient",
                plain=not case.flags.get("SCALE"),
                softcap=bool(case.flags.get("CAP")),
                hip=target.backend == "hip",
            )
            row = {
                **{"kernel": case.kernel, "variant": case.variant, "dtype": case.dtype},
                **{"dim": case.dim, "target": name, "tile": list(asdict(how).values())},
            }
            try:
                binary = compile_(case, how, target)
            except triton.runtime.errors.OutOfResources as error:
                print(json.dumps({**row, "error": str(error)}), flush=True)
                continue
            row |= {**resources(binary, target), "limit": SHARED[name]}
            if target.backend == "cuda":
                row["instructions"] = instructions(binary)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
