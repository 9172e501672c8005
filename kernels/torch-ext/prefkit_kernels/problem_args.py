"""A `Problem` as operators take it: flat tensors and settings, whose order is written only here."""

import contextlib
import importlib
import re
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from .logits import OUTPUTS, LogitTransform
from .problem import Head, Problem, Shard

# The package's own name: a second copy, loaded from a kernel hub, does not collide with this one.
NAMESPACE = re.sub(r"\W", "_", __package__ or "prefkit_kernels")
TENSORS = (
    "Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, "
    "Tensor? ref_hidden, Tensor? ref_weight, Tensor? ref_bias"
)
SETTINGS = (
    "int[] outputs, int ignore_index, float scale, float softcap, float temperature, "
    "int budget, int num_scored, str backend, str group, int first_class, int widest"
)
NUM_TENSORS = TENSORS.count(",") + 1
NUM_SETTINGS = SETTINGS.count(",") + 1


def problem_of(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ref_hidden: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
    outputs: Sequence[int],
    ignore_index: int,
    scale: float,
    softcap: float,
    temperature: float,
    budget: int,
    num_scored: int,
    backend: str,
    group: str,
    first_class: int,
    widest: int,
) -> Problem:
    """From an operator's arguments."""
    reference = None
    if ref_hidden is not None and ref_weight is not None:
        reference = Head(ref_hidden, ref_weight, ref_bias)
    return Problem(
        policy=Head(hidden, weight, bias),
        reference=reference,
        targets=targets.contiguous(),
        ignore_index=ignore_index,
        outputs=tuple(OUTPUTS[k] for k in outputs),
        transform=LogitTransform(scale, softcap, temperature),
        budget=budget,
        num_scored=num_scored,
        kernels=_kernels_of(backend),
        shard=Shard(group, first_class, widest),
    )


def _kernels_of(backend: str) -> ModuleType:
    """The module of row kernels behind a backend's name; Triton is imported only when used."""
    return importlib.import_module(f".rows_{backend}", __package__)


@contextlib.contextmanager
def plain(tensor: Tensor) -> Iterator[None]:
    """No autocast, and the tensor's own GPU as the current one for Triton's launches."""
    with torch.autocast(tensor.device.type, enabled=False), torch.cuda.device_of(tensor):
        yield
