"""Row operations as Triton kernels: raw logits → normalisers, sums over classes, gradients.

Same functions, same arguments and same meaning as in `rows_torch`; this file chooses the launches
of the kernels in `triton_rows`. Without a GPU they run under `TRITON_INTERPRET=1` (set before the
import).
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_rows
from .buffers import is_padded
from .logits import KLS, SUMS, LogitTransform
from .rows import Rows

# The row functions that take these' place for small heads, see `Chunks`.
SMALL_HEADS = "rows_small"
# Tile of partial results a program combines: rows × blocks. 32 blocks of 4096 are V = 131072.
_TILE, _TILE_WARPS = 32, 4


@dataclass(frozen=True)
class Launch:
    """How a kernel is cut up: columns a program (a power of two) and warps a program."""

    block: int
    warps: int


def interpreted() -> bool:
    """Whether Triton runs its kernels on CPU tensors in this process."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


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


def normalisers(rows: Rows, out: Tensor, how: Launch | None = None) -> None:
    """See `rows_torch.normalisers`. `how` overrides `launch`, for tuning."""
    _check(rows.raw, rows.bias, rows.targets, out)
    count, width = rows.raw.shape
    how = how or launch(width, heads=1)
    blocks = max(1, triton.cdiv(width, how.block))  # the target's logit is written even for none
    partial = out.new_empty(2, blocks, count)
    triton_rows.norms_kernel[(count, blocks)](
        raw=rows.raw,
        bias=_pointer(rows.bias, rows),
        targets=rows.targets,
        partial=partial,
        out=out,
        raw_stride=rows.raw.stride(0),
        partial_plane=partial.stride(0),
        partial_stride=partial.stride(1),
        out_stride=out.stride(0),
        width=width,
        first_class=rows.first_class,
        **_transform(rows),
        PAD=is_padded(rows.raw),
        **_options(how),
    )
    triton_rows.combine_norms_kernel[(triton.cdiv(count, _TILE),)](
        partial=partial,
        out=out,
        partial_plane=partial.stride(0),
        partial_stride=partial.stride(1),
        out_stride=out.stride(0),
        rows=count,
        blocks=blocks,
        ROWS=_TILE,
        BLOCKS=_TILE,
        num_warps=_TILE_WARPS,
        enable_fp_fusion=True,
    )


def class_sums(
    rows: Rows,
    outputs: tuple[str, ...],
    norms: Tensor,  # (4, C) fp32
    out: Tensor,  # (len(outputs), C) fp32
    how: Launch | None = None,
) -> None:
    """See `rows_torch.class_sums`. `how` overrides `launch`, for tuning."""
    _check(rows.raw, rows.ref, rows.bias, rows.ref_bias, norms, out)
    two = bool(KLS & set(outputs))
    width, ref_width = _widths(rows, two)
    how = how or launch(max(width, ref_width), heads=1 + two)
    blocks = max(1, triton.cdiv(max(width, ref_width), how.block))
    partial = out.new_empty(len(outputs), blocks, rows.raw.shape[0])
    triton_rows.class_sums_kernel[(rows.raw.shape[0], blocks)](
        **_both(rows, two),
        norms=norms,
        partial=partial,
        norms_stride=norms.stride(0),
        partial_plane=partial.stride(0),
        partial_stride=partial.stride(1),
        width=width,
        ref_width=ref_width,
        **_transform(rows),
        REF_BIAS=two and rows.ref_bias is not None,
        **_padding(rows, two),
        **{name.upper(): slot(name, outputs) for name in SUMS},
        **_options(how),
    )
    torch.sum(partial, dim=1, out=out)


def gradient(
    rows: Rows,
    outputs: tuple[str, ...],
    stats: Tensor,  # (len(outputs), C) fp32
    norms: Tensor,  # (4, C) fp32
    cotangents: Tensor,  # (len(outputs), C) fp32
    out: Tensor,  # (C, S) fp32 | bf16 | fp16
    kl_sum: Tensor | None = None,  # (C,) fp32
    how: Launch | None = None,
) -> None:
    """See `rows_torch.gradient`. `out` may have a lower precision than the logits; it may be
    `rows.raw` itself, since each element is written by the program that has read it.
    `how` overrides `launch`, for tuning."""
    _check(rows.raw, rows.ref, rows.bias, rows.ref_bias, rows.targets)
    _check(stats, norms, cotangents, out, kl_sum)
    two = bool(KLS & set(outputs))
    width, ref_width = _widths(rows, two)
    # A class of the reference alone has no gradient here, but it is part of the KL.
    columns = max(width, ref_width) if kl_sum is not None else width
    how = how or launch(columns, heads=1 + two)
    blocks = max(1, triton.cdiv(columns, how.block))
    partial = norms.new_empty(blocks if kl_sum is not None else 0, rows.raw.shape[0])
    triton_rows.gradient_kernel[(rows.raw.shape[0], blocks)](
        **_both(rows, two),
        targets=rows.targets,
        stats=stats,
        norms=norms,
        cotangents=cotangents,
        dz=out,
        partial=partial,
        stats_stride=stats.stride(0),
        norms_stride=norms.stride(0),
        cotangents_stride=cotangents.stride(0),
        dz_stride=out.stride(0),
        partial_stride=partial.stride(0),
        width=width,
        ref_width=ref_width,
        first_class=rows.first_class,
        **_transform(rows),
        REF_BIAS=two and rows.ref_bias is not None,
        **_padding(rows, two),
        DZ_PAD=is_padded(out),
        KL_SUM=kl_sum is not None,
        LOGP=slot("logp", outputs),
        **{name.upper(): slot(name, outputs) for name in SUMS},
        **_options(how),
    )
    if kl_sum is not None:
        torch.sum(partial, dim=0, out=kl_sum)


def _check(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        # An empty slice of a shorter vocabulary is never read, whatever its strides.
        assert tensor is None or tensor.numel() < 2 or tensor.stride(-1) == 1, "needs unit stride"


def _pointer(tensor: Tensor | None, rows: Rows) -> Tensor:
    """The tensor, or any other in its place: it is never read, its flag being off."""
    return rows.raw if tensor is None else tensor


def _widths(rows: Rows, two: bool) -> tuple[int, int]:
    return rows.raw.shape[1], rows.ref.shape[1] if two and rows.ref is not None else 0


def _both(rows: Rows, two: bool) -> dict[str, Any]:
    """Pointers and strides of policy and reference; the policy's twice where one is enough."""
    ref = _pointer(rows.ref if two else None, rows)
    return {
        "raw": rows.raw,
        "ref": ref,
        "bias": _pointer(rows.bias, rows),
        "ref_bias": _pointer(rows.ref_bias if two else None, rows),
        "raw_stride": rows.raw.stride(0),
        "ref_stride": ref.stride(0),
    }


def _padding(rows: Rows, two: bool) -> dict[str, bool]:
    ref_pad = two and rows.ref is not None and is_padded(rows.ref)
    return {"PAD": is_padded(rows.raw), "REF_PAD": ref_pad}


def _transform(rows: Rows) -> dict[str, Any]:
    return {"BIAS": rows.bias is not None, **transform_arguments(rows.transform)}


def transform_arguments(transform: LogitTransform) -> dict[str, Any]:
    """What every kernel is told of scale, softcap and temperature."""
    return {
        "scale": transform.scale,
        "softcap": transform.softcap,
        "inv_temp": 1.0 / transform.temperature,
        "SCALE": transform.scale != 1.0 or transform.temperature != 1.0,
        "CAP": transform.softcap != 0.0,
    }


def slot(name: str, outputs: tuple[str, ...]) -> int:
    """The row of an output, −1 where it was not asked for."""
    return outputs.index(name) if name in outputs else -1


def _options(how: Launch) -> dict[str, Any]:
    """Fused multiply-adds are asked for by name: Triton is about to change its default."""
    return {"BLOCK": how.block, "num_warps": how.warps, "enable_fp_fusion": True}
