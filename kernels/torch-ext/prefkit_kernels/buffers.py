"""Buffers with a vocabulary side, whose rows begin at multiples of 16 elements.

With V = 128257 (a pad token more) rows of V elements would begin anywhere: the vendor's products
take kernels for unaligned operands, many times slower (pytorch#106469), and row kernels lose their
128-bit loads. So a row is as wide as V rounded up to 16, whatever the dtype: at least 32 bytes.
The elements after the V-th are padding: read and written by row kernels, used by nobody.
"""

import torch
from torch import Tensor

_ELEMENTS = 16


def padded(width: int) -> int:
    """The width rounded up to a multiple of 16 elements."""
    return -(-width // _ELEMENTS) * _ELEMENTS


def new_store(like: Tensor, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Memory for `rows_of`: 1-D, uninitialised, on the device of `like`."""
    return like.new_empty(rows * padded(width), dtype=dtype)


def rows_of(store: Tensor, rows: int, width: int) -> Tensor:
    """(rows, width) view at the start of `store`, with the row stride `padded(width)`."""
    return store[: rows * padded(width)].view(rows, padded(width))[:, :width]


def is_padded(rows: Tensor) -> bool:
    """Whether each row of (C, S) is followed by padding up to the next multiple of 16 elements.

    By its shape and memory alone: rows exactly `padded(S)` apart, the last one's padding included.
    False where S itself is a multiple of 16 (there is nothing to pad).
    """
    width, stride = rows.shape[1], rows.stride(0)
    if stride == width or stride != padded(width):
        return False
    end = rows.storage_offset() + rows.shape[0] * stride
    return end * rows.element_size() <= rows.untyped_storage().nbytes()
