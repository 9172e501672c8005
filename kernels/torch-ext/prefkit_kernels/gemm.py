"""Matrix products with fp32 results from low-precision operands.

Rounding logits to bf16 before the softmax makes log-ratios wrong by 0.03 and small KLs by 100 %,
so the product is asked for an fp32 result: by cuBLAS (`out_dtype`) on a GPU; by upcasting slices
of the weight on a CPU, where bf16 products are also several times slower than fp32 ones.
"""

import functools

import torch
from torch import Tensor

# Weights are upcast this many bytes at a time: bounded, and large enough to keep the product busy.
_UPCAST_BYTES = 16 << 20


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
    if hidden.dtype == weight.dtype == out.dtype:
        return torch.mm(hidden, weight.T, out=out)
    if _tensor_cores(hidden, weight, out):
        return torch.mm(hidden, weight.T, out_dtype=out.dtype, out=out)
    hidden = hidden.to(out.dtype)
    for start, stop in _upcast_slices(weight):
        out[:, start:stop] = hidden @ weight[start:stop].to(out.dtype).T
    return out


def add_hidden_grad_(out: Tensor, dz: Tensor, weight: Tensor) -> Tensor:
    """out += dz @ weight, accumulated in the dtype of `out`.

    Args:
        out: (C, D) fp32 or fp64.
        dz: (C, S) in `gradient_dtype`.
        weight: (S, D).
    """
    if dz.dtype == weight.dtype == out.dtype:
        return out.addmm_(dz, weight)
    if _tensor_cores(dz, weight, out):
        return out.add_(torch.mm(dz, weight, out_dtype=out.dtype))
    if dz.dtype == weight.dtype:
        return out.add_(dz @ weight)
    for start, stop in _upcast_slices(weight):
        out.addmm_(dz[:, start:stop], weight[start:stop].to(dz.dtype))
    return out


def _upcast_slices(weight: Tensor) -> list[tuple[int, int]]:
    rows = max(1, _UPCAST_BYTES // (4 * weight.shape[1]))
    return [(s, min(weight.shape[0], s + rows)) for s in range(0, weight.shape[0], rows)]


def _tensor_cores(a: Tensor, b: Tensor, out: Tensor) -> bool:
    """Whether cuBLAS can multiply these into an fp32 result without rounding it first."""
    low = a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16)
    return low and out.dtype == torch.float32 and a.is_cuda and _mm_has_out_dtype()


@functools.cache
def _mm_has_out_dtype() -> bool:
    """Whether this torch and GPU multiply bf16 operands into an fp32 result."""
    try:
        a = torch.zeros(16, 16, dtype=torch.bfloat16, device="cuda")
        torch.mm(a, a, out_dtype=torch.float32, out=torch.empty(16, 16, device="cuda"))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True
