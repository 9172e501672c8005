"""Rows times factors, rounded once."""

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 4 << 20


def scale_rows(
    direction: Tensor,  # (R, …)
    factors: Tensor,  # (R,) fp32 | fp64
    out: Tensor,  # (R, …), overwritten; may be `direction` itself
) -> Tensor:
    """direction ⊙ factors, each product in the factors' precision and rounded once.

    By blocks of rows, so that no second tensor of that precision is held.
    """
    factors = factors.view(-1, *(1,) * (direction.dim() - 1))
    rows = max(1, _BLOCK_ELEMENTS * len(direction) // max(1, direction.numel()))
    for start in range(0, len(direction), rows):
        here = slice(start, start + rows)
        if direction.dtype == factors.dtype == out.dtype:
            torch.mul(direction[here], factors[here], out=out[here])
        else:
            out[here] = direction[here] * factors[here]
    return out
