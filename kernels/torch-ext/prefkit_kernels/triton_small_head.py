# mypy: allow-untyped-defs, no-check-untyped-defs
"""Triton kernels that make logits tile by tile from hidden states and weight, and never write them.

A program multiplies a block of token rows with a block of classes; the fp32 tile stays in its
registers, where it becomes maxima and sums, or the gradient. The grid has one axis: programs that
run at the same time share the rows of a group (GROUP blocks of tokens, which fit a GPU's second
cache) and go through the weight together, so that each block of it is read from memory once a
group. What a row needs from all blocks of classes goes through `partial`, as in `triton_rows`: no
atomics, the same bits each time. Each element of `out` belongs to one program.

Offsets of blocks are int64; within a block they are int32 (128 rows of any head are far from 2³¹).
D is a constant, since only a counted loop is pipelined. Strides and widths are specialised (16
divides them in every head that matters), what changes from call to call is not.

`small_head` launches these kernels; the formulas are those of `triton_rows`.
"""

import triton
import triton.language as tl

from .triton_math import excess, exp, probability, tanh

_VARYING = (
    *("targets", "norms", "cotangents", "partial", "out"),
    *("norms_stride", "cotangents_stride", "out_stride"),
    *("partial_plane", "partial_stride", "first_class", "rows"),
)


@triton.jit
def _place(rows, columns, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, GROUP: tl.constexpr):
    """Block of tokens and block of classes of this program: tokens fastest, group by group."""
    program = tl.program_id(0)
    blocks_c = tl.cdiv(rows, BLOCK_C)
    per_group = GROUP * tl.cdiv(columns, BLOCK_V)
    first = program // per_group * GROUP
    size = tl.minimum(blocks_c - first, GROUP)
    within = program % per_group
    return first + within % size, within // size


@triton.jit
def _products(
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
def _transformed(
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
    """Products → logits, as `triton_rows._logits` has it; if EDGE −inf beyond the last class."""
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
def _change_and_kl(p, q, d):
    """`difference` and `kl_terms` of `triton_math`, sharing the series and the comparison."""
    e = excess(d)
    near = tl.abs(d) < 0.5
    rise = d + e
    change = tl.where(near, p * rise, q - p)
    # Where q is 0, d may be −inf, or NaN where p is 0 too: any finite number makes q·d = 0.
    # (`tl.maximum` of a NaN is one number compiled and another interpreted.)
    far = q * tl.where(d > -1e4, d, -1e4) - change
    return change, tl.where(near, p * (d * rise - e), far)


@triton.jit
def _column(targets, first_class, width):
    """Columns of the targets, int32; −1 where a target is no class here."""
    local = targets - first_class
    return tl.where((targets >= 0) & (local >= 0) & (local < width), local, -1).to(tl.int32)


@triton.jit
def _halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Left and right half of a tile; they stay in the registers they are in."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _norms_columns(
    z,  # (BLOCK_C, COLUMNS) products
    block,  # of COLUMNS classes
    head,  # bias, width
    numbers,  # targets, partial, partial_plane, partial_stride, out, out_stride
    place,  # block_c, rows, first_class
    transform,  # scale, softcap, inv_temp
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Maximum and sum of some columns of a tile, and the logits of the targets among them."""
    bias, width = head
    targets, partial, partial_plane, partial_stride, out, out_stride = numbers
    block_c, rows, first_class = place
    scale, softcap, inv_temp = transform
    first = block * COLUMNS
    z = _transformed(
        z, bias, first, width, scale, softcap, inv_temp, BIAS, SCALE, CAP, COLUMNS, True
    )
    i = block_c.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = i < tl.where(first < width, rows, 0)  # the last tile may have one half alone
    target = tl.load(targets + i, mask=real, other=-1)
    column = _column(target, first_class, width)
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


@triton.jit(do_not_specialize=_VARYING)
def normalisers_kernel(
    hidden,  # (C, D)
    weight,  # (V, D)
    bias,  # (V,)
    targets,  # (C,)
    partial,  # (2, blocks of tiles or their halves, C) written: maximum m, Σ exp(z − m)
    out,  # (3, C), row 2 written: the target's logit
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
):
    block_c, block_v = _place(rows, width, BLOCK_C, BLOCK_V, GROUP)
    z = _products(
        *(hidden, weight, hidden_stride, weight_stride, block_c, block_v, rows, width),
        *(D, UPCAST, BLOCK_C, BLOCK_V, BLOCK_D),
    )
    head = bias, width
    numbers = targets, partial, partial_plane, partial_stride, out, out_stride
    place = block_c, rows, first_class
    transform = scale, softcap, inv_temp
    if HALVES:
        left, right = _halves(z, BLOCK_C, BLOCK_V)
        _norms_columns(
            *(left, 2 * block_v, head, numbers, place, transform),
            *(BIAS, SCALE, CAP, BLOCK_C, BLOCK_V // 2),
        )
        _norms_columns(
            *(right, 2 * block_v + 1, head, numbers, place, transform),
            *(BIAS, SCALE, CAP, BLOCK_C, BLOCK_V // 2),
        )
    else:
        _norms_columns(
            *(z, block_v, head, numbers, place, transform),
            *(BIAS, SCALE, CAP, BLOCK_C, BLOCK_V),
        )


@triton.jit
def _row(numbers, stride, k, i, real):
    """Row k of (K, C) numbers as a column, for rows of a block."""
    return tl.load(numbers + k * stride + i, mask=real, other=0.0)[:, None]


@triton.jit
def _gradient_columns(
    z,  # (BLOCK_C, COLUMNS) products of the policy
    zr,  # of the reference; z where there is no KL
    first_column,
    heads,  # bias, ref_bias, width, ref_width
    numbers,  # targets, norms, norms_stride, cotangents, cotangents_stride
    store,  # dz, dz_stride
    place,  # block_c, rows, first_class
    transform,  # scale, softcap, inv_temp
    BIAS: tl.constexpr,
    REF_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    DZ_PAD: tl.constexpr,
    KL_SUM: tl.constexpr,
    LOGP: tl.constexpr,
    KL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient by some columns of a tile, written; their KL sums, 0 where not KL_SUM."""
    bias, ref_bias, width, ref_width = heads
    targets, norms, norms_stride, cotangents, cotangents_stride = numbers
    dz, dz_stride = store
    block_c, rows, first_class = place
    scale, softcap, inv_temp = transform
    columns = first_column + tl.arange(0, COLUMNS)
    i = block_c.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = i < rows
    # Nothing beyond the last class is stored: −inf there is for the KL alone.
    z = _transformed(
        *(z, bias, first_column, width, scale, softcap, inv_temp),
        *(BIAS, SCALE, CAP, COLUMNS, KL_SUM),
    )
    top = _row(norms, norms_stride, 0, i, real)
    log_sum = _row(norms, norms_stride, 1, i, real)
    p = probability(z, top, log_sum)
    kl_sum = tl.zeros((BLOCK_C,), tl.float32)
    grad = tl.zeros((BLOCK_C, COLUMNS), tl.float32)
    if KL >= 0:
        zr = _transformed(
            *(zr, ref_bias, first_column, ref_width, scale, softcap, inv_temp),
            *(REF_BIAS, SCALE, CAP, COLUMNS, True),
        )
        ref_top = _row(norms, norms_stride, 2, i, real)
        ref_log_sum = _row(norms, norms_stride, 3, i, real)
        q = probability(zr, ref_top, ref_log_sum)
        # z' − z is exact next to the reference; two rounded log-probabilities are not.
        d = (zr - z) - ((ref_top - top) + (ref_log_sum - log_sum))
        change, terms = _change_and_kl(p, q, d)
        if KL_SUM:
            kl_sum = tl.sum(terms, axis=1)
        # A masked class has no gradient, whatever probability the reference gives it.
        if BIAS:
            change = tl.where(z == float("-inf"), 0.0, change)
        grad = -_row(cotangents, cotangents_stride, KL, i, real) * change
    if LOGP >= 0:
        a = _row(cotangents, cotangents_stride, LOGP, i, real)
        column = _column(tl.load(targets + i, mask=real, other=-1), first_class, width)
        # A masked target, hopeless as it is, has its gradient, except under a softcap.
        grad += tl.where(columns[None, :] == column[:, None], a, 0.0) - a * p
    if CAP:
        t = z * (1.0 / (inv_temp * softcap))
        grad = tl.where(z == float("-inf"), 0.0, grad * (scale * inv_temp * (1.0 - t * t)))
    elif SCALE:
        grad *= scale * inv_temp
    end = (width + 15) // 16 * 16 if DZ_PAD else width
    base = dz + block_c.to(tl.int64) * BLOCK_C * dz_stride
    at = base + tl.arange(0, BLOCK_C)[:, None] * dz_stride + columns[None, :]
    mask = real[:, None] & (columns < end)[None, :]
    tl.store(at, grad.to(dz.dtype.element_ty), mask=mask)
    return kl_sum


@triton.jit(do_not_specialize=_VARYING)
def gradient_kernel(
    hidden,  # (C, D)
    weight,  # (V, D)
    bias,  # (V,)
    ref_hidden,  # (C, D')
    ref_weight,  # (V', D')
    ref_bias,  # (V',)
    targets,  # (C,)
    norms,  # (4, C)
    cotangents,  # (K, C)
    dz,  # (C, V) written
    partial,  # (blocks, C) written where KL_SUM
    hidden_stride,
    weight_stride,
    ref_hidden_stride,
    ref_weight_stride,
    norms_stride,
    cotangents_stride,
    dz_stride,
    partial_stride,
    rows,
    width,
    ref_width,
    columns_end,  # the larger of both where KL_SUM, else `width`
    first_class,
    scale,
    softcap,
    inv_temp,
    D: tl.constexpr,
    REF_D: tl.constexpr,
    BIAS: tl.constexpr,
    REF_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    DZ_PAD: tl.constexpr,  # rows of dz are followed by padding up to a multiple of 16
    KL_SUM: tl.constexpr,
    LOGP: tl.constexpr,  # an output's row in `cotangents`, −1 where it is not there
    KL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    HALVES: tl.constexpr,  # work on half a tile at a time, which takes fewer registers
):
    block_c, block_v = _place(rows, columns_end, BLOCK_C, BLOCK_V, GROUP)
    z = _products(
        *(hidden, weight, hidden_stride, weight_stride, block_c, block_v, rows, width),
        *(D, UPCAST, BLOCK_C, BLOCK_V, BLOCK_D),
    )
    if KL >= 0:
        zr = _products(
            *(ref_hidden, ref_weight, ref_hidden_stride, ref_weight_stride),
            *(block_c, block_v, rows, ref_width, REF_D, UPCAST, BLOCK_C, BLOCK_V, BLOCK_D),
        )
    else:
        zr = z
    first = block_v * BLOCK_V
    heads = bias, ref_bias, width, ref_width
    numbers = targets, norms, norms_stride, cotangents, cotangents_stride
    store = dz, dz_stride
    place = block_c, rows, first_class
    transform = scale, softcap, inv_temp
    if HALVES:
        left, right = _halves(z, BLOCK_C, BLOCK_V)
        ref_left, ref_right = _halves(zr, BLOCK_C, BLOCK_V)
        kl_sum = _gradient_columns(
            *(left, ref_left, first, heads, numbers, store, place, transform),
            *(BIAS, REF_BIAS, SCALE, CAP, DZ_PAD, KL_SUM, LOGP, KL, BLOCK_C, BLOCK_V // 2),
        )
        kl_sum += _gradient_columns(
            *(right, ref_right, first + BLOCK_V // 2, heads, numbers, store, place, transform),
            *(BIAS, REF_BIAS, SCALE, CAP, DZ_PAD, KL_SUM, LOGP, KL, BLOCK_C, BLOCK_V // 2),
        )
    else:
        kl_sum = _gradient_columns(
            *(z, zr, first, heads, numbers, store, place, transform),
            *(BIAS, REF_BIAS, SCALE, CAP, DZ_PAD, KL_SUM, LOGP, KL, BLOCK_C, BLOCK_V),
        )
    if KL_SUM:
        i = block_c.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
        here = partial + block_v.to(tl.int64) * partial_stride + i
        tl.store(here, kl_sum, mask=i < rows)
