"""How the kernels over stored logits are launched: block sizes, warps, and common arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor

from ...core.buffers import is_padded
from ...core.logits import LogitsBlock, LogitScaling


@dataclass(frozen=True)
class Launch:
    """How a kernel is cut up: columns a program (a power of two) and warps a program."""

    block: int
    warps: int


def launch(width: int, heads: int) -> Launch:
    """The launch for rows of `width` classes of one or two heads; chosen without a GPU to time it.

    Each thread holds 16 elements of one row, or 8 of each of two: four 128-bit loads in flight, and
    registers for at least half of an SM's threads (a quarter with every output and option at once;
    docs/kernels.md). Programs are small, so that the last block of a row wastes little: of blocks
    of 4096 (two heads: 2048), half and a quarter of that, the largest that wastes at most 1/16.
    V = 32000, 49152, 128256 and 152064 take the largest and waste 0 to 2.4 %; a slice of 6500 takes
    1024 (10 %), not 4096 (26 %). `benchmarks/tune_rows.py` sweeps the alternatives on a GPU.
    """
    width = max(width, 1)
    for block in (4096 // heads, 2048 // heads, 1024 // heads):
        if triton.cdiv(width, block) * block * 16 <= width * 17:
            break
    block = min(block, triton.next_power_of_2(width))
    return Launch(block, warps=max(1, block * heads // (32 * 16)))


def check_strides(*tensors: Tensor | None) -> None:
    """Kernels step through a row one element at a time."""
    for tensor in tensors:
        # An empty slice of a shorter vocabulary is never read, whatever its strides.
        assert tensor is None or tensor.numel() < 2 or tensor.stride(-1) == 1, "needs unit stride"


def pointer(tensor: Tensor | None, block: LogitsBlock) -> Tensor:
    """The tensor, or any other in its place: it is never read, its flag being off."""
    return block.raw if tensor is None else tensor


def widths(block: LogitsBlock, two: bool) -> tuple[int, int]:
    """Classes of policy and reference, 0 for a reference that is not read."""
    return block.raw.shape[1], block.ref.shape[1] if two and block.ref is not None else 0


def both(block: LogitsBlock, two: bool) -> dict[str, Any]:
    """Pointers and strides of policy and reference; the policy's twice where one is enough."""
    ref = pointer(block.ref if two else None, block)
    return {
        "raw": block.raw,
        "ref": ref,
        "bias": pointer(block.bias, block),
        "ref_bias": pointer(block.ref_bias if two else None, block),
        "raw_stride": block.raw.stride(0),
        "ref_stride": ref.stride(0),
    }


def padding(block: LogitsBlock, two: bool) -> dict[str, bool]:
    """Whether rows of the logits are padded (`core.buffers`)."""
    ref_pad = two and block.ref is not None and is_padded(block.ref)
    return {"PAD": is_padded(block.raw), "REF_PAD": ref_pad}


def scaling_of(block: LogitsBlock) -> dict[str, Any]:
    """What a kernel is told of bias, scale, softcap and temperature."""
    return {"BIAS": block.bias is not None, **scaling_arguments(block.scaling)}


def scaling_arguments(scaling: LogitScaling) -> dict[str, Any]:
    """What every kernel is told of scale, softcap and temperature."""
    return {
        "scale": scaling.scale,
        "softcap": scaling.softcap,
        "inv_temp": 1.0 / scaling.temperature,
        "SCALE": scaling.scale != 1.0 or scaling.temperature != 1.0,
        "CAP": scaling.softcap != 0.0,
    }


def slot(name: str, outputs: tuple[str, ...]) -> int:
    """The row of an output, −1 where it was not asked for."""
    return outputs.index(name) if name in outputs else -1


def options(how: Launch) -> dict[str, Any]:
    """Fused multiply-adds are asked for by name: Triton is about to change its default."""
    return {"BLOCK": how.block, "num_warps": how.warps, "enable_fp_fusion": True}
