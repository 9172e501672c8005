"""Which kernels turn logits into numbers: in torch, or in Triton."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

BACKENDS = ("auto", "triton", "torch", "reference")


def resolve(backend: str, hidden: Tensor) -> str:
    """The folder of kernels that a backend's public name means: "torch" or "triton".

    Raises:
        ValueError: Triton by name where it cannot run: not installed, fp64, or no GPU.
    """
    if backend == "torch" or (backend == "auto" and not hidden.is_cuda):
        return "torch"
    if backend == "auto" and (hidden.dtype == torch.float64 or not _triton_available()):
        return "torch"
    if backend == "triton":
        _check_triton(hidden)
    return "triton"


def kernels_of(backend: str) -> ModuleType:
    """The folder of kernels behind a backend's name; Triton is imported only when used."""
    return importlib.import_module(f"..backends.{backend}", __package__)


def interpreted() -> bool:
    """Whether Triton runs its kernels on CPU tensors in this process."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _triton_available() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def _check_triton(hidden: Tensor) -> None:
    if not _triton_available():
        raise ValueError("backend='triton' needs Triton: pip install triton, or backend='auto'")
    if hidden.dtype == torch.float64:
        raise ValueError("backend='triton' computes in fp32; for fp64 use backend='torch'")
    if not hidden.is_cuda and not interpreted():
        raise ValueError(
            f"backend='triton' needs a GPU, but hidden is on {hidden.device}; use backend='auto' "
            "(or set TRITON_INTERPRET=1 before the import, to test the kernels on a CPU)"
        )
