"""Maximum, log-sum, target's logit and plain sum of each token's logits, from operands."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....core.logits import LogitsBlock
from ..functions import exp
from ..launch import scaling_arguments
from ..normalisers_kernel import combine_norms
from .launch import Tile, check_strides, options, tile_for
from .products import VARYING, columns_of, halves, place_of, products, transformed


def normalisers(
    block: LogitsBlock,
    out: Tensor,  # (3 or 4, C) fp32
    how: Tile | None = None,
) -> None:
    """`backends.torch.normalisers` of hidden @ weight.T, which is never written.

    Args:
        block: with operands hidden (C, D) and weight (S, D), fp32 | bf16 | fp16.
        out: overwritten: max z, log Σ exp(z − max), and the target's logit: −inf where the target
            is no class of this slice, NaN for a negative one; of four rows the last: Σ z.
        how: overrides `tile`, for tuning.
    """
    assert block.operands is not None, "small heads come with their operands"
    hidden, weight = block.operands
    bias, targets, first_class = block.bias, block.targets, block.first_class
    check_strides(hidden, weight, bias, targets, out)
    count, width = hidden.shape[0], weight.shape[0]
    if not width:  # no block of classes would write
        out[:2] = -torch.inf
        out[2] = torch.where(targets < 0, torch.nan, -torch.inf)
        out[3:] = 0
        return
    how = how or tile_for(hidden, block.scaling, (bias,), gradient=False)
    tiles = triton.cdiv(width, how.classes)
    blocks = triton.cdiv(width, how.classes // (1 + how.halves))
    partial = out.new_empty(len(out) - 1, blocks, count)
    if not count:  # an empty grid cannot be launched
        return
    normalisers_kernel[(triton.cdiv(count, how.tokens) * tiles,)](
        hidden=hidden,
        weight=weight,
        bias=weight if bias is None else bias,
        targets=targets,
        partial=partial,
        out=out,
        hidden_stride=hidden.stride(0),
        weight_stride=weight.stride(0),
        partial_plane=partial.stride(0),
        partial_stride=partial.stride(1),
        out_stride=out.stride(0),
        rows=count,
        width=width,
        first_class=first_class,
        D=hidden.shape[1],
        BIAS=bias is not None,
        HALVES=how.halves,
        SUM=len(out) > 3,
        **scaling_arguments(block.scaling),
        **options(how, hidden),
    )
    combine_norms(partial, out)


@triton.jit(do_not_specialize=VARYING)
def normalisers_kernel(
    hidden,  # (C, D)
    weight,  # (V, D)
    bias,  # (V,)
    targets,  # (C,)
    partial,  # (2 or 3, blocks of tiles or their halves, C) written: maximum m, Σ exp(z − m), Σ z
    out,  # (3 or 4, C), row 2 written: the target's logit
    hidden_stride,
    weight_stride,
    partial_plane,
    partial_stride,
    out_stride,
    rows,
    width,
    first_class,
    scale,
    softcap,
    inv_temp,
    D: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    HALVES: tl.constexpr,  # work on half a tile at a time, which takes fewer registers
    SUM: tl.constexpr,  # whether Σ z is wanted
):
    block_c, block_v = place_of(rows, width, BLOCK_C, BLOCK_V, GROUP)
    z = products(
        *(hidden, weight, hidden_stride, weight_stride, block_c, block_v, rows, width),
        *(D, UPCAST, BLOCK_C, BLOCK_V, BLOCK_D),
    )
    head = bias, width
    numbers = targets, partial, partial_plane, partial_stride, out, out_stride
    place = block_c, rows, first_class
    scaling = scale, softcap, inv_temp
    if HALVES:
        left, right = halves(z, BLOCK_C, BLOCK_V)
        _norms_columns(
            *(left, 2 * block_v, head, numbers, place, scaling),
            *(BIAS, SCALE, CAP, SUM, BLOCK_C, BLOCK_V // 2),
        )
        _norms_columns(
            *(right, 2 * block_v + 1, head, numbers, place, scaling),
            *(BIAS, SCALE, CAP, SUM, BLOCK_C, BLOCK_V // 2),
        )
    else:
        _norms_columns(
            *(z, block_v, head, numbers, place, scaling),
            *(BIAS, SCALE, CAP, SUM, BLOCK_C, BLOCK_V),
        )


@triton.jit
def _norms_columns(
    z,  # (BLOCK_C, COLUMNS) products
    block,  # of COLUMNS classes
    head,  # bias, width
    numbers,  # targets, partial, partial_plane, partial_stride, out, out_stride
    place,  # block_c, rows, first_class
    scaling,  # scale, softcap, inv_temp
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Maximum and sum of some columns of a tile, and the logits of the targets among them."""
    bias, width = head
    targets, partial, partial_plane, partial_stride, out, out_stride = numbers
    block_c, rows, first_class = place
    scale, softcap, inv_temp = scaling
    first = block * COLUMNS
    z = transformed(
        z, bias, first, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, COLUMNS, True
    )
    i = block_c.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = i < tl.where(first < width, rows, 0)  # the last tile may have one half alone
    target = tl.load(targets + i, mask=real, other=-1)
    column = columns_of(target, first_class, width)
    # Of a row it is the block with its target that writes; for a target elsewhere the first.
    mine = real & (tl.where(column < 0, 0, column // COLUMNS) == block)
    if tl.max(mine.to(tl.int32), axis=0) > 0:
        hit = (first + tl.arange(0, COLUMNS))[None, :] == column[:, None]
        found = tl.sum(tl.where(hit, z, 0.0), axis=1)
        none = tl.where(target < 0, float("nan"), float("-inf"))
        tl.store(out + 2 * out_stride + i, tl.where(column < 0, none, found), mask=mine)
    top = tl.max(z, axis=1)
    # A block of masked classes alone adds 0, not exp(−inf + inf).
    total = tl.sum(exp(z - tl.where(top == float("-inf"), 0.0, top)[:, None]), axis=1)
    here = partial + block.to(tl.int64) * partial_stride + i
    tl.store(here, top, mask=real)
    tl.store(here + partial_plane, total, mask=real)
    if SUM:
        inside = (first + tl.arange(0, COLUMNS) < width)[None, :]
        total = tl.sum(tl.where(inside, z, 0.0), axis=1)
        tl.store(here + 2 * partial_plane, total, mask=real)
