"""Maximum and log-sum of each row of logits, the logit of its target, and their plain sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core.buffers import is_padded
from ...core.logits import LogitsBlock
from .functions import VARYING, exp, load_logits, rescale
from .launch import Launch, check_strides, launch, options, pointer, scaling_of

# Partial results a program combines: so many rows and blocks. 32 blocks of 4096 are V = 131072.
COMBINED, COMBINING_WARPS = 32, 4


def normalisers(block: LogitsBlock, out: Tensor, how: Launch | None = None) -> None:
    """See `backends.torch.normalisers`. `how` overrides `launch`, for tuning."""
    check_strides(block.raw, block.bias, block.targets, out)
    count, width = block.raw.shape
    how = how or launch(width, heads=1)
    blocks = max(1, triton.cdiv(width, how.block))  # the target's logit is written even for none
    partial = out.new_empty(len(out) - 1, blocks, count)
    norms_kernel[(count, blocks)](
        raw=block.raw,
        bias=pointer(block.bias, block),
        targets=block.targets,
        partial=partial,
        out=out,
        raw_stride=block.raw.stride(0),
        partial_plane=partial.stride(0),
        partial_stride=partial.stride(1),
        out_stride=out.stride(0),
        width=width,
        first_class=block.first_class,
        **scaling_of(block),
        PAD=is_padded(block.raw),
        SUM=len(out) > 3,
        **options(how),
    )
    combine_norms(partial, out)


def combine_norms(partial: Tensor, out: Tensor) -> None:
    """Normalisers of rows from those of their blocks.

    Args:
        partial: (2, blocks, C) fp32: maximum m of a block, Σ exp(z − m); (3, blocks, C): also Σ z.
        out: (3, C) fp32, the first two rows overwritten: maximum, log Σ exp(z − maximum); (4, C):
            also the last: Σ z.
    """
    blocks, count = partial.shape[1:]
    if len(partial) > 2:
        torch.sum(partial[2], dim=0, out=out[3])
    combine_norms_kernel[(triton.cdiv(count, COMBINED),)](
        partial=partial,
        out=out,
        partial_plane=partial.stride(0),
        partial_stride=partial.stride(1),
        out_stride=out.stride(0),
        rows=count,
        blocks=blocks,
        ROWS=COMBINED,
        BLOCKS=COMBINED,
        num_warps=COMBINING_WARPS,
        enable_fp_fusion=True,
    )


@triton.jit(do_not_specialize=VARYING)
def norms_kernel(
    raw,  # (C, S)
    bias,  # (S,)
    targets,  # (C,)
    partial,  # (2 or 3, blocks, C) written: maximum m of a block, Σ exp(z − m), Σ z
    out,  # (3 or 4, C), row 2 written: the target's logit
    raw_stride,
    partial_plane,
    partial_stride,
    out_stride,
    width,
    first_class,
    scale,
    softcap,
    inv_temp,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    PAD: tl.constexpr,  # whether rows of raw are padded, see `buffers`
    SUM: tl.constexpr,  # whether Σ z is wanted
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    row = raw + i * raw_stride
    columns = block * BLOCK + tl.arange(0, BLOCK)
    z = load_logits(row, bias, columns, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, PAD)
    here = partial + block.to(tl.int64) * partial_stride + i
    if SUM:
        tl.store(here + 2 * partial_plane, tl.sum(tl.where(columns < width, z, 0.0), axis=0))
    top = tl.max(z, axis=0)
    # A block of masked classes alone adds 0, not exp(−inf + inf).
    total = tl.sum(exp(z - tl.where(top == float("-inf"), 0.0, top)), axis=0)
    tl.store(here, top)
    tl.store(here + partial_plane, total)
    # The target's logit has to be, to the bit, the one that went into the maximum.
    if CAP:  # a tanh computed twice may be fused in two ways: read it off the block that has it
        target = tl.load(targets + i)
        local = target - first_class
        column = tl.where((local >= 0) & (local < width), local, -1).to(tl.int32)
        if tl.where(column < 0, 0, column // BLOCK) == block:
            found = tl.sum(tl.where(columns == column, z, 0.0), axis=0)
            none = tl.where(target < 0, float("nan"), float("-inf"))
            tl.store(out + 2 * out_stride + i, tl.where(column < 0, none, found))
    elif block == 0:  # a sum and products, each rounded: no way but one
        target = tl.load(targets + i)
        column = target - first_class
        hit = load_logits(row, bias, column, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, PAD)
        tl.store(out + 2 * out_stride + i, tl.where(target < 0, float("nan"), hit))


@triton.jit(do_not_specialize=VARYING)
def combine_norms_kernel(
    partial,  # (2, blocks, C) of `norms_kernel`
    out,  # (3, C), rows 0 and 1 written: maximum, log Σ exp(z − maximum)
    partial_plane,
    partial_stride,
    out_stride,
    rows,
    blocks,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = tl.arange(0, BLOCKS)
    top = tl.full((BLOCKS, ROWS), float("-inf"), tl.float32)
    total = tl.zeros((BLOCKS, ROWS), tl.float32)
    start = 0
    while start < blocks:  # `range` over an argument fails interpreted by Triton 3.6, NumPy 2.4
        inside = (start + block < blocks)[:, None] & (i < rows)[None, :]
        place = (start + block).to(tl.int64)[:, None] * partial_stride + i[None, :]
        other_top = tl.load(partial + place, mask=inside, other=float("-inf"))
        other = tl.load(partial + partial_plane + place, mask=inside, other=0.0)
        higher = tl.maximum(top, other_top)
        total = rescale(total, top, higher) + rescale(other, other_top, higher)
        top = higher
        start += BLOCKS
    row_top = tl.max(top, axis=0)
    row_total = tl.sum(rescale(total, top, row_top[None, :]), axis=0)
    tl.store(out + i, row_top, mask=i < rows)
    tl.store(out + out_stride + i, tl.log(row_total), mask=i < rows)
