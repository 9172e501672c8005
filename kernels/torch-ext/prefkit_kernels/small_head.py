"""Small heads: normalisers and gradients from hidden states and weight, without stored logits.

The same meaning as `normalisers` and `gradient` of the row modules, but they take operands: a tile
of logits is multiplied, used and forgotten, and the gradient multiplies it again. No chunk of fp32
logits limits the rows, so that one call may take all tokens of which dz (2 bytes) fits.

When that wins is a matter of D. What follows is arithmetic; what an H200 says stands at the end. In
picoseconds a token and class at 798 TFLOP/s (a product unit u = 2D operations: 1.44, 2.57, 5.13 at
D 576, 1024, 2048) and 3 TB/s (a byte is 0.33), nothing overlapped; Triton's products run at the
share e of that. With a gradient both ways write dz (2 bytes) and read it twice (4, in products that
do not wait).

    logits kept: 4 bytes written, 4 read (normalisers), 4 read (gradient) a head; reference of DPO 8
    logits made again: none of them, and a unit more for each gradient; u/e for u where Triton is

                                     D 576              D 1024             D 2048        wins to D
                               kept  e 60 %  80 %  kept   60    80    kept   60    80    60    80 %
    forward alone: u + 8 B      4.1     2.4   1.8   5.2   4.3   3.2    7.8   8.6   6.4  1596  4256
    DPO, reference cached       9.0     8.4   7.2  12.4  14.4  12.2   20.1  28.0  23.8   684  1064
    DPO: 4u + 20 B             13.1    10.8   9.0  17.6  18.6  15.4   27.9  36.6  30.2   887  1520
    TDPO: 4u + 24 B            14.4    13.2  10.8  18.9  22.9  18.6   29.2  45.2  36.6   684  1064

Forward alone (log-probabilities of a reference or for scoring) wins most: no product is repeated
and no logit is written.

Instructions bound e: at most 16 (normalisers), 15 (DPO), 43 (TDPO) an element in sm_90 code follow
a tile's product, at 0.034 ps each, and with one program an SM nothing hides them. With the loop at
85 %, a tile takes u/0.85 + 0.54, 0.5 or (of two heads) u/0.43 + 1.46: e is 64 %, 66 %, 59 % at 576
and DPO gains a fifth there, TDPO a tenth. But where a product hides the writing of its own logits
(4 bytes a head that "kept" counts) DPO is even at 576 and TDPO loses a tenth. So, from everything
hidden to nothing hidden, it wins up to D

    forward alone 1790 to 4800, DPO 630 to 1325 (reference cached 480 to 875), TDPO 410 to 805.

fp32 operands have no tensor cores here and never win.

Measured on an H200 (benchmarks/results/2026-11-27-gpu-nvidia-h200-choices.md; V 49152, 16,384
tokens), time of logits kept over time of logits made again: forward alone 1.33 at D 576, 1.23 at
1024, 1.05 at 1536; DPO 1.05 at 576, 0.97 at 1024 (reference cached 0.99, 0.92), TDPO 0.92 at 576,
0.84 at 1024. The buffers of a loss are half as large, those of the forward alone 1/30.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_rows, triton_small_head
from .buffers import is_padded
from .logits import LogitTransform
from .rows_triton import _TILE, _TILE_WARPS, interpreted, slot, transform_arguments

Operands = tuple[Tensor, Tensor, Tensor | None]  # hidden (C, D), weight (V, D), bias (V,) or None


# Rows of hidden states that a pass over the weight serves: they must stay in a GPU's second cache.
_GROUP_BYTES = 4 << 20
_HOPPER_SHARED = 200 << 10
# The largest D that wins by the arithmetic above whatever a product hides, rounded down; the
# measured ratios agree. For DPO that is with the reference in the run; with it cached it is even.
_FORWARD_DIM, _LOGP_DIM, _KL_DIM = 1536, 576, 384


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut up.

    Attributes:
        rows, classes: block of tokens and of classes of a program (powers of two, at least 16).
        depth: columns of D multiplied at a time (a power of two, at least 16).
        warps, stages: warps a program; blocks of operands in flight.
        halves: a tile is worked on one half at a time, which takes fewer registers.
    """

    rows: int
    classes: int
    depth: int
    warps: int
    stages: int
    halves: bool = False


def worthwhile(
    hidden: Tensor, weight: Tensor, outputs: tuple[str, ...], transform: LogitTransform
) -> bool:
    """Whether the arithmetic above is for this module; `outputs` are those with a gradient."""
    low = hidden.dtype == weight.dtype and hidden.dtype in (torch.bfloat16, torch.float16)
    if not (low and hidden.is_cuda) or transform.softcap or not set(outputs) <= {"logp", "kl"}:
        return False
    most = _KL_DIM if "kl" in outputs else _LOGP_DIM if outputs else _FORWARD_DIM
    return hidden.shape[1] <= most and hidden.shape[1] % 8 == 0  # rows begin at 16 bytes


def tile(
    heads: int,
    itemsize: int,
    shared: int,
    *,
    gradient: bool = False,
    plain: bool = True,
    softcap: bool = False,
    hip: bool = False,
) -> Tile:
    """The tile of the normalisers or of a gradient by one or two heads.

    The first alone is timed: 530 (normalisers) and 429 TFLOP/s (DPO) at D 576 on an H200.

    The largest that compiles without a spill by Triton 3.6 and 3.9 (tests/compile_small_head.py): a
    tile of 128 × 256 does 85 operations a byte of the second cache, one of 128 × 128 does 64, and
    an H100 has about 6 TB/s of that for its 798 TFLOP/s. Options take registers, a softcap most,
    and so do tensor cores that leave their sums in them (before Hopper); fp32 operands take the
    place of two.

    Args:
        itemsize: bytes of an operand's element.
        shared: bytes of shared memory that a program may take.
        plain: neither bias nor scale nor temperature.
        hip: an AMD GPU, where a pipeline holds one block of operands less than it has stages.
    """
    large = plain if hip else shared >= _HOPPER_SHARED and (plain or not gradient)
    if itemsize > 2:
        rows, classes, depth, warps = 32, 64, 32, 4
    elif softcap or (heads == 2 and not large):
        rows, classes, depth, warps = 64, 128, 64, 8
    elif heads == 2 or not large:
        rows, classes, depth, warps = 128, 128, 64, 8
    else:
        rows, classes, depth, warps = 128, 256, 64, 8
    stages = 2 if hip else 3
    while stages > 1 and (stages - hip) * (rows + classes) * depth * itemsize > shared:
        stages -= 1
    halves = not hip and rows * classes * heads == 128 * 256
    return Tile(rows, classes, depth, warps, stages, halves)


def group(dim: int, itemsize: int, how: Tile) -> int:
    """Blocks of tokens that share a pass over the weight: those whose rows take 4 MiB."""
    return max(1, _GROUP_BYTES // (how.rows * dim * itemsize))


def normalisers(
    hidden: Tensor,  # (C, D) fp32 | bf16 | fp16
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    targets: Tensor,  # (C,) int64
    transform: LogitTransform,
    first_class: int,
    out: Tensor,  # (3, C) fp32
    how: Tile | None = None,
) -> None:
    """`rows_torch.normalisers` of hidden @ weight.T, which is never written.

    Args:
        out: overwritten: max z, log Σ exp(z − max), and the target's logit: −inf where the target
            is no class of this slice, NaN for a negative one.
        how: overrides `tile`, for tuning.
    """
    _check(hidden, weight, bias, targets, out)
    count, width = hidden.shape[0], weight.shape[0]
    if not width:  # no block of classes would write
        out[:2] = -torch.inf
        out[2] = torch.where(targets < 0, torch.nan, -torch.inf)
        return
    how = how or _tile_for(hidden, transform, (bias,), gradient=False)
    tiles = triton.cdiv(width, how.classes)
    blocks = triton.cdiv(width, how.classes // (1 + how.halves))
    partial = out.new_empty(2, blocks, count)
    if not count:  # an empty grid cannot be launched
        return
    triton_small_head.normalisers_kernel[(triton.cdiv(count, how.rows) * tiles,)](
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
        **transform_arguments(transform),
        **_options(how, hidden),
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


def gradient(
    policy: Operands,
    reference: Operands | None,
    outputs: tuple[str, ...],  # "logp", "kl" or both
    targets: Tensor,  # (C,) int64
    transform: LogitTransform,
    first_class: int,
    norms: Tensor,  # (4, C) fp32: max and log-sum of policy, of reference
    cotangents: Tensor,  # (len(outputs), C) fp32
    out: Tensor,  # (C, V) fp32 | bf16 | fp16, overwritten
    kl_sum: Tensor | None = None,  # (C,) fp32, overwritten
    how: Tile | None = None,
) -> None:
    """`rows_torch.gradient` by hidden @ weight.T, whose tiles are multiplied anew.

    dz = a(1_y − p) + b(p − p'), then through temperature, softcap and scale. Neither other
    outputs nor values of these are read. `how` overrides `tile`, for tuning.

    Args:
        reference: read for "kl" alone; its D and V may be others.
        out: rows may be apart, with padding between them (`buffers`), which receives anything.
        kl_sum: what `rows_torch.class_sums` gives for "kl".
    """
    hidden, weight, bias = policy
    two = "kl" in outputs
    assert set(outputs) <= {"logp", "kl"}, "other outputs keep their logits"
    assert not two or reference is not None, "a KL has a reference"
    ref_hidden, ref_weight, ref_bias = reference if two and reference is not None else policy
    _check(hidden, weight, bias, ref_hidden, ref_weight, ref_bias)
    _check(targets, norms, cotangents, out, kl_sum)
    count, width = out.shape
    ref_width = ref_weight.shape[0] if two else 0
    # A class of the reference alone has no gradient here, but it is part of the KL.
    columns = max(width, ref_width) if kl_sum is not None else width
    biases = (bias, ref_bias) if two else (bias,)
    how = how or _tile_for(hidden, transform, biases, gradient=True)
    blocks = triton.cdiv(columns, how.classes)
    partial = norms.new_empty(blocks if kl_sum is not None else 0, count)
    if count and blocks:
        triton_small_head.gradient_kernel[(triton.cdiv(count, how.rows) * blocks,)](
            hidden=hidden,
            weight=weight if len(weight) else hidden,  # a row is read even where none counts
            bias=weight if bias is None else bias,
            ref_hidden=ref_hidden,
            ref_weight=ref_weight if len(ref_weight) else ref_hidden,
            ref_bias=ref_weight if ref_bias is None else ref_bias,
            targets=targets,
            norms=norms,
            cotangents=cotangents,
            dz=out,
            partial=partial,
            hidden_stride=hidden.stride(0),
            weight_stride=weight.stride(0),
            ref_hidden_stride=ref_hidden.stride(0),
            ref_weight_stride=ref_weight.stride(0),
            norms_stride=norms.stride(0),
            cotangents_stride=cotangents.stride(0),
            dz_stride=out.stride(0),
            partial_stride=partial.stride(0),
            rows=count,
            width=width,
            ref_width=ref_width,
            columns_end=columns,
            first_class=first_class,
            D=hidden.shape[1],
            REF_D=ref_hidden.shape[1],
            BIAS=bias is not None,
            REF_BIAS=two and ref_bias is not None,
            DZ_PAD=is_padded(out),
            KL_SUM=kl_sum is not None,
            LOGP=slot("logp", outputs),
            KL=slot("kl", outputs),
            **transform_arguments(transform),
            HALVES=how.halves,
            **_options(how, hidden),
        )
    if kl_sum is not None:
        torch.sum(partial, dim=0, out=kl_sum)


def _check(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is None or tensor.numel() < 2 or tensor.stride(-1) == 1, "needs unit stride"
        # Offsets within a block are int32, those of blocks are not.
        assert tensor is None or tensor.dim() < 2 or tensor.stride(0) < 1 << 22, (
            "rows too far apart"
        )


def _tile_for(
    hidden: Tensor, transform: LogitTransform, biases: tuple[Tensor | None, ...], gradient: bool
) -> Tile:
    """The tile for as many heads as there are biases."""
    shared = 64 << 10
    if hidden.is_cuda:
        device = torch.cuda.get_device_properties(hidden.device)
        shared = getattr(device, "shared_memory_per_block_optin", shared)
    return tile(
        len(biases),
        hidden.element_size(),
        shared,
        gradient=gradient,
        plain=transform.identity and all(bias is None for bias in biases),
        softcap=transform.softcap != 0.0,
        hip=torch.version.hip is not None,
    )


def _options(how: Tile, hidden: Tensor) -> dict[str, Any]:
    return {
        "UPCAST": interpreted() and hidden.dtype == torch.bfloat16,
        "BLOCK_C": how.rows,
        "BLOCK_V": how.classes,
        "BLOCK_D": how.depth,
        "GROUP": group(hidden.shape[1], hidden.element_size(), how),
        "num_warps": how.warps,
        "num_stages": how.stages,
        "enable_fp_fusion": True,
    }
