"""Tiles of logits: what the kernels for small heads share.

A program multiplies a block of token rows with a block of classes; the fp32 tile stays in its
registers, where it becomes maxima and sums, or the gradient. The grid has one axis: programs that
run at the same time share the rows of a group (GROUP blocks of tokens, which fit a GPU's second
cache) and go through the weight together, so that each block of it is read from memory once a
group. What a row needs from all blocks of classes goes through `partial`, as in the kernels over
stored logits: no atomics, the same bits each time. Each element of `out` belongs to one program.

Offsets of blocks are int64; within a block they are int32 (128 rows of any head are far from 2³¹).
D is a constant, since only a counted loop is pipelined. Strides and widths are specialised (16
divides them in every head that matters), what changes from call to call is not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..functions import tanh

VARYING = (
    *("targets", "norms", "cotangents", "partial", "out"),
    *("norms_stride", "cotangents_stride", "out_stride"),
    *("partial_plane", "partial_stride", "first_class", "rows"),
)


@triton.jit
def place_of(rows, columns, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, GROUP: tl.constexpr):
    """Block of tokens and block of classes of this program: tokens fastest, group by group."""
    program = tl.program_id(0)
    blocks_c = tl.cdiv(rows, BLOCK_C)
    per_group = GROUP * tl.cdiv(columns, BLOCK_V)
    first = program // per_group * GROUP
    size = tl.minimum(blocks_c - first, GROUP)
    within = program % per_group
    return first + within % size, within // size


@triton.jit
def products(
    hidden,
    weight,
    hidden_stride,
    weight_stride,
    block_c,
    block_v,
    rows,
    width,
    D: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(BLOCK_C, BLOCK_V) fp32 products of a block of rows and a block of classes.

    Beyond the last row or class the last one is read again, so that no load has a mask; what comes
    of it is for the caller to discard.
    """
    base_c, base_v = block_c * BLOCK_C, block_v * BLOCK_V
    i = tl.minimum(tl.arange(0, BLOCK_C), rows - 1 - base_c)
    v = tl.maximum(tl.minimum(tl.arange(0, BLOCK_V), width - 1 - base_v), 0)
    d = tl.arange(0, BLOCK_D)
    # A shorter vocabulary may end blocks before this one: then its first classes are read.
    base_v = tl.where(base_v < width, base_v, 0)
    a_at = hidden + base_c.to(tl.int64) * hidden_stride + i[:, None] * hidden_stride + d[None, :]
    b_at = weight + base_v.to(tl.int64) * weight_stride + v[None, :] * weight_stride + d[:, None]
    total = tl.zeros((BLOCK_C, BLOCK_V), tl.float32)
    for start in range(0, D, BLOCK_D):
        if D % BLOCK_D == 0:
            a, b = tl.load(a_at + start), tl.load(b_at + start)
        else:
            inside = start + d < D
            a = tl.load(a_at + start, mask=inside[None, :], other=0.0)
            b = tl.load(b_at + start, mask=inside[:, None], other=0.0)
        if UPCAST:  # the interpreter multiplies bf16 as if its bits were integers
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit
def transformed(
    z,  # (BLOCK_C, COLUMNS) products
    bias,
    first_column,
    width,
    scale,
    softcap,
    inv_temp,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    COLUMNS: tl.constexpr,
    EDGE: tl.constexpr,
):
    """Products → logits, as `load_logits` has it; if EDGE −inf beyond the last class."""
    columns = first_column + tl.arange(0, COLUMNS)
    if BIAS:
        beyond = float("-inf")
        z += tl.load(bias + columns, mask=columns < width, other=beyond).to(tl.float32)[None, :]
    elif EDGE and first_column + COLUMNS > width:  # few programs: elsewhere no element is compared
        z = tl.where((columns < width)[None, :], z, float("-inf"))
    if SCALE or CAP:
        scaled = z * scale
        if CAP:
            scaled = softcap * tanh(scaled * (1.0 / softcap))
        z = tl.where(z == float("-inf"), z, scaled * inv_temp)
    return z


@triton.jit
def columns_of(targets, first_class, width):
    """Columns of the targets, int32; −1 where a target is no class here."""
    local = targets - first_class
    return tl.where((targets >= 0) & (local >= 0) & (local < width), local, -1).to(tl.int32)


@triton.jit
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Left and right half of a tile; they stay in the registers they are in."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
