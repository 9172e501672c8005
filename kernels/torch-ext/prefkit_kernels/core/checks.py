"""What a public function refuses before it computes, and how it reads its arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..vocab_parallel import VocabShard
from .backend import BACKENDS, resolve
from .logits import LogitScaling
from .outputs import NEEDS_REFERENCE, OUTPUTS

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PASSES = ("auto", "one_pass", "keep_dz", "two_pass")


class Options(NamedTuple):
    """The options that `token_stats` and `pair_scores` share; see the former."""

    outputs: tuple[str, ...]
    detached: tuple[str, ...]
    ignore_index: int
    temperature: float
    logit_scale: float
    softcap: float | None
    memory_budget: int | None
    backend: str
    num_scored: int | None
    vocab_shard: VocabShard | None

    @property
    def scaling(self) -> LogitScaling:
        return LogitScaling(
            float(self.logit_scale), float(self.softcap or 0.0), float(self.temperature)
        )

    def settings(self, hidden: Tensor) -> tuple[Any, ...]:
        """As the operators take them (`problem.SETTINGS`)."""
        scaling, shard = self.scaling, self.vocab_shard
        return (
            [OUTPUTS.index(name) for name in self.outputs],
            [OUTPUTS.index(name) for name in self.detached],
            self.ignore_index,
            scaling.scale,
            scaling.softcap,
            scaling.temperature,
            self.memory_budget or 0,
            -1 if self.num_scored is None else self.num_scored,
            resolve(self.backend, hidden),
            shard.group.group_name if shard else "",
            shard.start if shard else 0,
            shard.widest if shard else 0,
            shard.vocab_size if shard else 0,
        )


_Maybe = Optional[Tensor]  # an alias is computed, and Python 3.9 has no | of types
HeadTensors = tuple[
    Tensor, Tensor, Tensor, _Maybe, _Maybe, _Maybe, _Maybe
]  # hidden, weight, targets, bias, ref_hidden, ref_weight, ref_bias


def checked(heads: HeadTensors, options: Options) -> HeadTensors:
    """The heads as the operators take them: cast under autocast, no reference that nothing reads.

    Raises:
        ValueError, TypeError: see `token_stats`.
    """
    hidden, weight, targets, bias, ref_hidden, ref_weight, ref_bias = heads
    check_head(hidden, weight, targets, bias, "")
    _check_options(options, ref_hidden, ref_weight)
    if not any(name in NEEDS_REFERENCE for name in options.outputs):
        ref_hidden = ref_weight = ref_bias = None
    elif ref_hidden is not None and ref_weight is not None:
        check_head(ref_hidden, ref_weight, targets, ref_bias, "ref_")
        ref_hidden, ref_weight = ref_hidden.detach(), ref_weight.detach()
        ref_bias = None if ref_bias is None else ref_bias.detach()
    classes = weight.shape[0]
    if options.vocab_shard is not None:
        classes = options.vocab_shard.check(weight, ref_weight)
    elif ref_weight is not None and "ref_logp" in options.outputs:
        classes = min(classes, ref_weight.shape[0])
    check_targets(targets, classes, options.ignore_index)
    hidden, weight = autocast_operands(hidden, weight)
    check_dtypes(hidden, weight, "")
    if ref_hidden is not None and ref_weight is not None:
        ref_hidden, ref_weight = autocast_operands(ref_hidden, ref_weight)
        check_dtypes(ref_hidden, ref_weight, "ref_")
    return hidden, weight, targets, bias, ref_hidden, ref_weight, ref_bias


def autocast_operands(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What autocast does to a linear layer's operands; the logits stay fp32 all the same."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return hidden, weight
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype)


def check_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, p: str
) -> None:
    for name, tensor in ((f"{p}hidden", hidden), (f"{p}weight", weight), (f"{p}bias", bias)):
        if isinstance(tensor, DTensor):
            raise TypeError(
                f"{name} is a DTensor: gather it first, with "
                "full_tensor(grad_placements=[Partial('avg')]) so that its gradient is reduced"
            )
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, {p}hidden on {hidden.device}")
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{p}hidden must be (T, D) and {p}weight (V, D) with the same D, got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}; flatten batches with flatten(0, 1)"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be (T,) = ({hidden.shape[0]},) int64 to fit {p}hidden, got "
            f"{tuple(targets.shape)} {targets.dtype}"
        )
    if targets.device != hidden.device:
        raise ValueError(f"targets are on {targets.device}, {p}hidden on {hidden.device}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{p}bias must be (V,) = ({weight.shape[0]},), got {tuple(bias.shape)}")


def check_dtypes(hidden: Tensor, weight: Tensor, p: str) -> None:
    if hidden.dtype not in _DTYPES:
        raise ValueError(f"{p}hidden must be a floating dtype, got {hidden.dtype}")
    if weight.dtype != hidden.dtype:
        raise ValueError(
            f"{p}hidden is {hidden.dtype} and {p}weight {weight.dtype}: cast one of them, or call "
            "under torch.autocast, which casts both"
        )


def output_names(names: Sequence[str], option: str = "outputs") -> tuple[str, ...]:
    """The names as a tuple; a string would be read as its letters.

    Raises:
        ValueError: a string.
    """
    if isinstance(names, str):
        raise ValueError(f"{option} is the string {names!r}: give a tuple of names, ({names!r},)")
    return tuple(names)


def _check_options(options: Options, ref_hidden: Tensor | None, ref_weight: Tensor | None) -> None:
    outputs = options.outputs
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs or len(set(outputs)) != len(outputs):
        raise ValueError(f"outputs must be distinct names of {OUTPUTS}, got {outputs}")
    unknown = [name for name in options.detached if name not in outputs]
    if unknown:
        raise ValueError(f"detached must be names of outputs = {outputs}, got {unknown}")
    if (ref_hidden is None) != (ref_weight is None):
        raise ValueError("ref_hidden and ref_weight go together: give both or neither")
    wanting = [name for name in outputs if name in NEEDS_REFERENCE]
    if wanting and ref_hidden is None:
        raise ValueError(f"outputs {wanting} need ref_hidden and ref_weight")
    if not 0 < options.temperature < math.inf:
        raise ValueError(f"temperature must be > 0 and finite, got {options.temperature}")
    if not math.isfinite(options.logit_scale):
        raise ValueError(f"logit_scale must be a finite number, got {options.logit_scale}")
    for name, least in (("memory_budget", 1), ("num_scored", 0)):
        value = getattr(options, name)
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name} must be a whole number ≥ {least} or None, got {value!r}")
    if options.vocab_shard is not None and not isinstance(options.vocab_shard, VocabShard):
        raise ValueError(f"vocab_shard must be a VocabShard, got {options.vocab_shard!r}")
    if options.softcap is not None and not options.softcap > 0:
        raise ValueError(f"softcap must be > 0 or None, got {options.softcap}")
    if options.backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {options.backend!r}")
    if options.backend == "reference" and options.vocab_shard is not None:
        raise ValueError("backend='reference' holds the whole vocabulary: leave vocab_shard out")


def check_passes(passes: str) -> None:
    if passes not in PASSES:
        raise ValueError(f"passes must be one of {PASSES}, got {passes!r}")


def check_targets(targets: Tensor, classes: int, ignore_index: int) -> None:
    """Refuses targets outside 0..classes − 1; on a CPU only, a look costs a GPU a host sync."""
    if targets.is_cuda or torch.compiler.is_compiling():
        return
    wrong = (targets != ignore_index) & ((targets < 0) | (targets >= classes))
    if bool(wrong.any()):
        position = int(wrong.nonzero()[0])
        raise ValueError(
            f"targets[{position}] = {int(targets[position])} is outside 0..{classes - 1}; "
            f"positions to be skipped carry ignore_index = {ignore_index}"
        )
