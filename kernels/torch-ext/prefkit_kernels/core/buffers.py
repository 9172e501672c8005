"""Buffers of logits: how many bytes, how many tokens or classes at a time, and where rows begin.

A byte budget bounds every buffer that has a vocabulary side. It is never derived from V / D: chunk
size decides the speed (too few tokens starve the matrix product), so it is an argument in bytes.

Rows begin at multiples of 16 elements. With V = 128257 (a pad token more) rows of V elements would
begin anywhere: the vendor's products take kernels for unaligned operands, many times slower
(pytorch#106469), and the kernels over logits lose their 128-bit loads. So a row is as wide as V
rounded up to 16, whatever the dtype: at least 32 bytes. The elements after the V-th are padding:
read and written by kernels, used by nobody.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch import device as Device

MIB = 1 << 20

# On a GPU tokens that fill no tile of a product are lost. What is added to an fp32 dW reads and
# writes all of it for each chunk, so that wants many: on an H200 (D 8192, V 128256) it runs at 159,
# 441, 597 and 641 TFLOP/s with 256, 1024, 2048 and 4096 tokens, where logits and dH have about 700
# from 256 on. Where nothing is added (a frozen head, DPO), 1 GiB took no more time than 2: 167
# and 165 ms against 164 and 175; 512 MiB took 177 and 174. (benchmarks/results/2026-11-27-gpu-*.md)
_GPU_BUDGET, _GPU_TRAINED, _GPU_TILE = 1024 * MIB, 2048 * MIB, 256
# On a CPU more tokens gain nothing: 512 are no faster than 256 at V 32000, D 1024, measured whole.
_CPU_TOKENS, _CPU_MOST = 256, 512 * MIB
_CPU_SLICES = 64 * MIB
_ALIGNMENT = 16  # elements


def token_budget(device: Device, token_bytes: int, trained: bool = False) -> int:
    """Default bytes for chunks of tokens: 256 on a CPU (at most 512 MiB), elsewhere 1 GiB.

    Args:
        trained: the head has a gradient: 2 GiB elsewhere.
    """
    if device.type == "cpu":
        return min(_CPU_TOKENS * token_bytes, _CPU_MOST)
    return _GPU_TRAINED if trained else _GPU_BUDGET


def slice_budget(device: Device) -> int:
    """Default bytes for slices of the vocabulary: 64 MiB on a CPU, 2 GiB elsewhere."""
    return _CPU_SLICES if device.type == "cpu" else _GPU_TRAINED


def token_tile(device: Device) -> int:
    """Tokens that a matrix product works on at a time: chunks should be multiples of it."""
    return 1 if device.type == "cpu" else _GPU_TILE


def token_chunks(
    num_tokens: int, token_bytes: int, budget: int, tile: int = 1
) -> Iterator[tuple[int, int]]:
    """Split tokens into chunks of nearly equal size whose buffers fit `budget`.

    Args:
        num_tokens: scored tokens N.
        token_bytes: bytes of all logits buffers for one token (V × itemsize × number of buffers).
        budget: bytes; at least one token is taken however small it is.
        tile: chunks are multiples of so many tokens, where the budget allows as many.
    Yields:
        `(start, stop)` half-open ranges covering 0..num_tokens.
    """
    largest = max(1, budget // max(1, token_bytes))
    if 0 < num_tokens <= largest:
        yield 0, num_tokens
        return
    tile = tile if largest >= tile else 1
    yield from _balanced(num_tokens, largest - largest % tile, tile)


def vocab_slices(vocab: int, column_bytes: int, budget: int) -> Iterator[tuple[int, int]]:
    """Split the vocabulary into slices whose (N, slice) buffers fit `budget`.

    Args:
        vocab: number of classes V.
        column_bytes: bytes of all logits buffers for one column (N × itemsize × buffers).
        budget: bytes; at least 64 columns are taken, so that the matrix products stay efficient.
    Yields:
        `(start, stop)` half-open ranges covering 0..vocab.
    """
    yield from _balanced(vocab, max(64, budget // max(1, column_bytes)), multiple=64)


def _balanced(total: int, largest: int, multiple: int) -> Iterator[tuple[int, int]]:
    if total == 0:
        return
    pieces = -(-total // largest)
    size = -(-total // pieces)
    size = min(total, -(-size // multiple) * multiple)
    for start in range(0, total, size):
        yield start, min(total, start + size)


def padded(width: int) -> int:
    """The width rounded up to a multiple of 16 elements."""
    return -(-width // _ALIGNMENT) * _ALIGNMENT


def new_store(like: Tensor, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Memory for `padded_view`: 1-D, uninitialised, on the device of `like`."""
    return like.new_empty(rows * padded(width), dtype=dtype)


def padded_view(store: Tensor, rows: int, width: int) -> Tensor:
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
