"""From raw logits to statistics, over rows whose classes may lie on several processes.

The row kernels give maxima, sums and target logits of the classes they see; what is left to do is
little and the same for every backend: merge the slices, take a logarithm, subtract.
"""

from types import ModuleType

import torch
from torch import Tensor

from .logits import SUMS
from .problem import Shard
from .rows import Rows


def normalise(
    kernels: ModuleType,
    rows: Rows,
    shard: Shard,
    norms: Tensor,  # (2, C), overwritten: max z, log Σ exp(z − max) over the whole vocabulary
) -> Tensor:
    """(C,) log-probabilities of the targets under `rows.raw`; two all-reduces on several processes.

    Each element is −inf for a class that no process has, NaN for a negative target.
    """
    found = norms.new_empty(3, norms.shape[1])
    if rows.raw.shape[1]:
        kernels.normalisers(rows, found)
    else:  # a process without a row of the vocabulary still takes part in the reductions
        found.fill_(-torch.inf)
    if shard.group:
        here = found[0].clone()
        found[0::2] = shard.max_(found[0::2].contiguous())
        total = torch.exp(found[1] + (here - found[0]).nan_to_num_(nan=-torch.inf))
        found[1] = shard.sum_(total).log_()
    norms.copy_(found[:2])
    return (found[2] - found[0]) - found[1]


def add_sums(
    kernels: ModuleType,
    rows: Rows,
    outputs: tuple[str, ...],
    shard: Shard,
    norms: Tensor,  # (4, C)
    stats: Tensor,  # (len(outputs), C): rows of the outputs in `logits.SUMS` are overwritten
) -> None:
    """The statistics that are sums over classes; one all-reduce on several processes."""
    names = tuple(name for name in outputs if name in SUMS)
    if not names:
        return
    sums = stats.new_zeros(len(names), stats.shape[1])
    if rows.raw.shape[1]:
        kernels.class_sums(rows, names, norms, sums)
    shard.sum_(sums)
    for name, values in zip(names, sums, strict=True):
        stats[outputs.index(name)] = values.log_() if name == "log_sum_sq" else values
