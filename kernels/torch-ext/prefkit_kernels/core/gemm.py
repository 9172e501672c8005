"""Matrix products with fp32 results from low-precision operands.

Rounding logits to bf16 before the softmax makes log-ratios wrong by 0.03 and small KLs by 100 %,
so the product is asked for an fp32 result: by cuBLAS (`out_dtype`) on a GPU; by upcasting slices
of the weight on a CPU, where bf16 products are also several times slower than fp32 ones.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# On a CPU products go by slices of this many bytes of fp32 weight: the slice and its upcast stay in
# the cache, and one wide product with few rows is slower than its slices.
_SLICE_BYTES = 4 << 20
# The most that an accumulating product may hold beside its result, where cuBLAS cannot accumulate.
_PIECE_BYTES = 64 << 20


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of logits and statistics: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gradient_dtype(hidden: Tensor) -> torch.dtype:
    """dtype of dz in the gradient products: the operands' own on a GPU, fp32 or fp64 on a CPU."""
    return hidden.dtype if hidden.is_cuda else compute_dtype(hidden.dtype)


def project_(out: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """out = hidden @ weight.T in the dtype of `out`.

    Args:
        out: (C, S) fp32 (fp64 for fp64 operands), overwritten.
        hidden: (C, D), in the dtype of weight or already in that of out.
        weight: (S, D).
    """
    if _tensor_cores(hidden, weight, out):
        return torch.mm(hidden, weight.T, out_dtype=out.dtype, out=out)
    if hidden.is_cuda and hidden.dtype == weight.dtype == out.dtype:
        return torch.mm(hidden, weight.T, out=out)
    hidden = hidden.to(out.dtype)
    for start, stop in _slices(weight, _PIECE_BYTES):
        torch.mm(hidden, weight[start:stop].to(out.dtype).T, out=out[:, start:stop])
    return out


def add_hidden_grad_(out: Tensor, dz: Tensor, weight: Tensor, first: bool = False) -> Tensor:
    """out += dz @ weight, accumulated in the dtype of `out`.

    Args:
        out: (C, D) fp32 or fp64.
        dz: (C, S) in `gradient_dtype`.
        weight: (S, D).
        first: overwrite `out` instead.
    """
    if dz.dtype == weight.dtype:
        return _accumulate_(out, dz, weight, first)
    if first:
        out.zero_()
    for start, stop in _slices(weight, _PIECE_BYTES):
        out.addmm_(dz[:, start:stop], weight[start:stop].to(dz.dtype))
    return out


def add_weight_grad_(out: Tensor, dz: Tensor, hidden: Tensor, first: bool = False) -> Tensor:
    """out += dz.T @ hidden, accumulated in the dtype of `out`.

    Args:
        out: (S, D) fp32 or fp64.
        dz: (C, S) and hidden: (C, D), both in `gradient_dtype`.
        first: overwrite `out` instead.
    """
    for start, stop in _slices(out, on_gpu=None):
        _accumulate_(out[start:stop], dz[:, start:stop].T, hidden, first)
    return out


def weight_grad_(out: Tensor, dz: Tensor, hidden: Tensor, factor: Tensor | None = None) -> Tensor:
    """out = dz.T @ hidden (· factor), rounded once to the dtype of `out`.

    Args:
        out: (S, D) in any dtype, overwritten.
        dz: (C, S) and hidden: (C, D), both in `gradient_dtype`.
        factor: () fp32, multiplied in before the rounding.
    """
    if factor is None and out.dtype == compute_dtype(dz.dtype):
        return add_weight_grad_(out, dz, hidden, first=True)
    # bf16 or fp16 on a GPU, added up in fp32 (unless torch's own switch
    # `allow_bf16_reduced_precision_reduction` lets a library add the parts of a split sum in bf16).
    if factor is None and out.dtype == dz.dtype:
        return torch.mm(dz.T, hidden, out=out)
    for start, stop in _slices(out, _PIECE_BYTES):
        piece = out.new_empty(stop - start, out.shape[1], dtype=compute_dtype(dz.dtype))
        add_weight_grad_(piece, dz[:, start:stop], hidden, first=True)
        out[start:stop] = piece if factor is None else piece.mul_(factor)
    return out


def _accumulate_(out: Tensor, a: Tensor, b: Tensor, first: bool) -> Tensor:
    """out (M, N) = or += a (M, K) @ b (K, N), with the result in the dtype of `out`."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out) if first else out.addmm_(a, b)
    fp32 = _tensor_cores(a, b, out)
    if fp32 and first:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    if fp32 and _adds_to_fp32(a.dtype, a.device):
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    rows = max(1, _PIECE_BYTES // (4 * max(1, out.shape[1])))
    for start in range(0, out.shape[0], rows):
        piece = slice(start, start + rows)
        # Without fp32 results (old torch, some GPUs) each piece is rounded to the operands' dtype.
        some = a[piece]
        product = torch.mm(some, b, out_dtype=out.dtype) if fp32 else torch.mm(some, b)
        out[piece] = product if first else out[piece] + product
    return out


def _slices(rows: Tensor, on_gpu: int | None) -> list[tuple[int, int]]:
    """Ranges of rows (of the vocabulary) that a product takes at a time.

    On a GPU as many as make `on_gpu` bytes of fp32, all of them for None.
    """
    if rows.is_cuda and on_gpu is None:
        return [(0, rows.shape[0])]
    most = on_gpu if rows.is_cuda and on_gpu is not None else _SLICE_BYTES
    size = max(64, most // (4 * max(1, rows.shape[1])))
    return [(s, min(rows.shape[0], s + size)) for s in range(0, rows.shape[0], size)]


def _tensor_cores(a: Tensor, b: Tensor, out: Tensor) -> bool:
    """Whether the vendor's library can multiply these into an fp32 result without rounding it."""
    low = a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16)
    return low and out.dtype == torch.float32 and a.is_cuda and _gives_fp32(a.dtype, a.device)


@functools.cache
def _gives_fp32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch and GPU multiply operands of `dtype` into an fp32 result."""
    a, total = _probes(dtype, device)
    return _works(
        lambda: torch.mm(a, a, out_dtype=torch.float32, out=total),
        (total, 16),
        f"fp32 results of {dtype} products on {device}",
        "logits come from upcast slices, exact and several times slower, and gradients are rounded "
        "to the operands' dtype",
    )


@functools.cache
def _adds_to_fp32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether they add a product of such operands to an fp32 matrix in place."""
    a, total = _probes(dtype, device)
    return _works(
        lambda: torch.addmm(total, a, a, out_dtype=torch.float32, out=total),
        (total, 17),
        f"adding {dtype} products to fp32 matrices on {device}",
        f"the head's gradient is added up in pieces of {_PIECE_BYTES >> 20} MiB",
    )


def _probes(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Operands, and a result whose rows lie apart, as those of padded logits do."""
    rows = torch.ones(16, 32, device=device)[:, :16]
    return torch.ones(16, 16, dtype=dtype, device=device), rows


def _works(
    product: Callable[[], Tensor], expected: tuple[Tensor, int], what: str, instead: str
) -> bool:
    """Whether this torch has such a product for this GPU: found by trying, torch has no query.

    Args:
        expected: the result and what must stand in each place of it.
        what, instead: for the message where it has not: what is missing, what is done without it.
    """
    total, value = expected
    try:
        product()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:
        _say(what, (str(error).strip() or type(error).__name__).splitlines()[0], instead)
        return False
    if not bool((total == value).all()):
        _say(what, f"it gave {float(total[0, 0]):g} for {value}", instead)
        return False
    return True


def _say(what: str, reason: str, instead: str) -> None:
    """Once a dtype and device: the answers are kept."""
    logger.warning("No %s with torch %s (%s): %s.", what, torch.__version__, reason, instead)
