"""What forward and backward share: logits from raw products, log-ratios, and cutting a block up.

Work goes by parts of a block, few enough tokens that all temporaries stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...core.logits import LogitsBlock, LogitScaling

# Bytes of logits a part: a CPU's cache; on a GPU enough tokens to fill it, within the budget.
_PART_BYTES, _GPU_PART_BYTES = 1 << 20, 32 << 20
# Beyond this |d|, expm1 may overflow to inf · 0; p' · e^{-d} = p is used instead.
SAFE_D = 60.0


def parts(block: LogitsBlock) -> Iterator[tuple[LogitsBlock, slice]]:
    """Parts of the block that fit the cache, with the numbers of their tokens."""
    count, width = block.raw.shape
    most = _GPU_PART_BYTES if block.raw.is_cuda else _PART_BYTES
    size = max(1, most // max(1, width * block.raw.element_size()))
    for start in range(0, count, size):
        yield block.part(start, min(count, start + size)), slice(start, start + size)


def logits(raw: Tensor, bias: Tensor | None, scaling: LogitScaling) -> Tensor:
    """Raw products → logits; `raw` itself, never written to, where nothing changes it."""
    if scaling.identity:
        return raw if bias is None else raw + bias
    z = (raw if bias is None else raw + bias) * scaling.scale
    if scaling.softcap:
        z.div_(scaling.softcap).tanh_().mul_(scaling.softcap)
        if bias is not None:
            z.masked_fill_(bias == -torch.inf, -torch.inf)
    return z.div_(scaling.temperature)


def log_ratio_shift(norms: Tensor) -> Tensor:
    """(C,) what z' − z exceeds log p' − log p by."""
    return (norms[2] - norms[0]) + (norms[3] - norms[1])


def log_ratio(z: Tensor, zr: Tensor, norms: Tensor) -> Tensor:
    """d = log p' − log p, from the difference of the logits.

    Next to the reference z' − z is exact in floating point, while two log-probabilities have each
    been rounded at their own size.
    """
    return (zr - z).sub_(log_ratio_shift(norms)[:, None])


def fit(lp: Tensor, width: int) -> Tensor:
    """Cut or extend with −inf to `width` classes."""
    if lp.shape[1] >= width:
        return lp[:, :width]
    return torch.nn.functional.pad(lp, (0, width - lp.shape[1]), value=-torch.inf)


def within(d: Tensor, bound: float) -> bool:
    """Whether every |d| ≤ bound; False for NaN. On a GPU, False without a look (no host sync)."""
    if d.is_cuda:
        return False
    low, high = torch.aminmax(d)
    return bool(low >= -bound) and bool(high <= bound)
