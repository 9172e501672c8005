"""When a small head's logits are better made twice than stored, and by which tiles.

A tile of logits is multiplied, used and forgotten, and the gradient multiplies it again. No chunk
of fp32 logits limits the tokens, so that one call may take all of which dz (2 bytes) fits.

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

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....core.backend import interpreted
from ....core.logits import LogitScaling

# Hidden states that a pass over the weight serves: they must stay in a GPU's second cache.
_GROUP_BYTES = 4 << 20
_HOPPER_SHARED = 200 << 10
# The largest D that wins by the arithmetic above whatever a product hides, rounded down; the
# measured ratios agree. For DPO that is with the reference in the run; with it cached it is even.
_FORWARD_DIM, _LOGP_DIM, _KL_DIM = 1536, 576, 384


def worthwhile(
    hidden: Tensor, weight: Tensor, outputs: tuple[str, ...], scaling: LogitScaling
) -> bool:
    """Whether the arithmetic above is for this module; `outputs` are those with a gradient."""
    low = hidden.dtype == weight.dtype and hidden.dtype in (torch.bfloat16, torch.float16)
    if not (low and hidden.is_cuda) or scaling.softcap or not set(outputs) <= {"logp", "kl"}:
        return False
    most = _KL_DIM if "kl" in outputs else _LOGP_DIM if outputs else _FORWARD_DIM
    return hidden.shape[1] <= most and hidden.shape[1] % 8 == 0  # rows begin at 16 bytes


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut up.

    Attributes:
        tokens, classes: block of tokens and of classes of a program (powers of two, at least 16).
        depth: columns of D multiplied at a time (a power of two, at least 16).
        warps, stages: warps a program; blocks of operands in flight.
        halves: a tile is worked on one half at a time, which takes fewer registers.
    """

    tokens: int
    classes: int
    depth: int
    warps: int
    stages: int
    halves: bool = False


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

    The largest that compiles without a spill by Triton 3.6 and 3.9
    (tests/kernels/compile_small_head.py): a tile of 128 × 256 does 85 operations a byte of the
    second cache, one of 128 × 128 does 64, and an H100 has about 6 TB/s of that for its 798
    TFLOP/s. Options take registers, a softcap most, and so do tensor cores that leave their sums in
    them (before Hopper); fp32 operands take the place of two.

    Args:
        itemsize: bytes of an operand's element.
        shared: bytes of shared memory that a program may take.
        plain: neither bias nor scale nor temperature.
        hip: an AMD GPU, where a pipeline holds one block of operands less than it has stages.
    """
    large = plain if hip else shared >= _HOPPER_SHARED and (plain or not gradient)
    if itemsize > 2:
        tokens, classes, depth, warps = 32, 64, 32, 4
    elif softcap or (heads == 2 and not large):
        tokens, classes, depth, warps = 64, 128, 64, 8
    elif heads == 2 or not large:
        tokens, classes, depth, warps = 128, 128, 64, 8
    else:
        tokens, classes, depth, warps = 128, 256, 64, 8
    stages = 2 if hip else 3
    while stages > 1 and (stages - hip) * (tokens + classes) * depth * itemsize > shared:
        stages -= 1
    halves = not hip and tokens * classes * heads == 128 * 256
    return Tile(tokens, classes, depth, warps, stages, halves)


def group(dim: int, itemsize: int, how: Tile) -> int:
    """Blocks of tokens that share a pass over the weight: those that take 4 MiB."""
    return max(1, _GROUP_BYTES // (how.tokens * dim * itemsize))


def tile_for(
    hidden: Tensor, scaling: LogitScaling, biases: tuple[Tensor | None, ...], gradient: bool
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
        plain=scaling.identity and all(bias is None for bias in biases),
        softcap=scaling.softcap != 0.0,
        hip=torch.version.hip is not None,
    )


def options(how: Tile, hidden: Tensor) -> dict[str, Any]:
    """Block sizes, warps and stages as a kernel takes them."""
    return {
        "UPCAST": interpreted() and hidden.dtype == torch.bfloat16,
        "BLOCK_C": how.tokens,
        "BLOCK_V": how.classes,
        "BLOCK_D": how.depth,
        "GROUP": group(hidden.shape[1], hidden.element_size(), how),
        "num_warps": how.warps,
        "num_stages": how.stages,
        "enable_fp_fusion": True,
    }


def check_strides(*tensors: Tensor | None) -> None:
    """What the offsets within a block rely on."""
    for tensor in tensors:
        assert tensor is None or tensor.numel() < 2 or tensor.stride(-1) == 1, "needs unit stride"
        # Offsets within a block are int32, those of blocks are not.
        assert tensor is None or tensor.dim() < 2 or tensor.stride(0) < 1 << 22, (
            "rows too far apart"
        )
