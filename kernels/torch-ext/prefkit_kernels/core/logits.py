"""From raw products to logits, and from blocks of logits to statistics.

What happens to a logit between the matrix product and the softmax:

    raw_v   = ⟨hidden, weight_v⟩ + bias_v
    logit_v = softcap · tanh(logit_scale · raw_v / softcap) / temperature

Scale first, then softcap, then temperature: Cohere and Granite have the first, Gemma-2 the second,
sampling code the third. A class whose bias is −inf is masked and stays masked under a softcap.

The kernels give maxima, sums and target logits of the classes they see, which may be a slice of a
vocabulary that lies on several processes. What is left to do is little and the same for every
backend: merge the slices, take a logarithm, subtract.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ..vocab_parallel import Shard
from .outputs import SUMS


@dataclass(frozen=True)
class LogitScaling:
    """Scale, softcap and temperature of the logits; `softcap` 0.0 means none."""

    scale: float = 1.0
    softcap: float = 0.0
    temperature: float = 1.0

    @property
    def identity(self) -> bool:
        return self.scale == 1.0 and self.softcap == 0.0 and self.temperature == 1.0


@dataclass(frozen=True)
class LogitsBlock:
    """A block of raw logits and what is needed to read them.

    Attributes:
        raw: (C, S) policy logits before bias, scale, softcap and temperature.
        ref: (C, S') reference logits likewise, or None.
        bias, ref_bias: (S,), (S',) or None.
        targets: (C,) int64 class of each token.
        scaling: scale, softcap, temperature (of both).
        first_class: class number of column 0 (a vocabulary slice starts there).
        operands, ref_operands: hidden (C, D) and weight (S, D) of which raw and ref would be the
            products, where those are not there (small heads).
    """

    raw: Tensor
    ref: Tensor | None
    bias: Tensor | None
    ref_bias: Tensor | None
    targets: Tensor
    scaling: LogitScaling
    first_class: int = 0
    operands: tuple[Tensor, Tensor] | None = None
    ref_operands: tuple[Tensor, Tensor] | None = None

    def part(self, start: int, stop: int) -> LogitsBlock:
        """Tokens start..stop of stored logits."""
        return LogitsBlock(
            self.raw[start:stop],
            None if self.ref is None else self.ref[start:stop],
            self.bias,
            self.ref_bias,
            self.targets[start:stop],
            self.scaling,
            self.first_class,
        )


def normalise(
    kernels: ModuleType,
    block: LogitsBlock,
    shard: Shard,
    norms: Tensor,  # (2, C), overwritten: max z, log Σ exp(z − max) over the whole vocabulary
    mean: Tensor | None = None,  # (C,), overwritten: the mean logit
) -> Tensor:
    """(C,) log-probabilities of the targets under `block.raw`.

    Each element is −inf for a class that no process has, NaN for a negative target. Over a group
    two all-reduces, or three with a mean.
    """
    found = norms.new_empty(3 if mean is None else 4, norms.shape[1])
    if block.raw.shape[1]:
        kernels.normalisers(block, found)
    else:  # a process without a row of the vocabulary still takes part in the reductions
        found[:3] = -torch.inf
        found[3:] = 0
    if shard.group:
        here = found[0].clone()
        found[0:3:2] = shard.max_(found[0:3:2].contiguous())
        total = torch.exp(found[1] + (here - found[0]).nan_to_num_(nan=-torch.inf))
        found[1] = shard.sum_(total).log_()
    norms.copy_(found[:2])
    if mean is not None:
        torch.div(shard.sum_(found[3]), shard.classes or block.raw.shape[1], out=mean)
    return log_probability(found[2], norms)


def log_probability(z: Tensor, norms: Tensor) -> Tensor:
    """(C,) log-probability of a class of each token, from its logit z (C,) and norms (2, C).

    Everything that is one comes from here: equal logits give the same bits.
    """
    return (z - norms[0]) - norms[1]


def add_sums(
    kernels: ModuleType,
    block: LogitsBlock,
    outputs: tuple[str, ...],
    shard: Shard,
    norms: Tensor,  # (4, C)
    stats: Tensor,  # (len(outputs), C): those in `outputs.SUMS` are overwritten
) -> None:
    """The statistics that are sums over classes; one all-reduce on several processes."""
    names = tuple(name for name in outputs if name in SUMS)
    if not names:
        return
    sums = stats.new_zeros(len(names), stats.shape[1])
    if block.raw.shape[1]:
        kernels.class_sums(block, names, norms, sums)
    shard.sum_(sums)
    for name, values in zip(names, sums):
        stats[outputs.index(name)] = values.log_() if name == "log_sum_sq" else values
