"""How many rows or vocabulary columns are worked on at a time.

A byte budget bounds every buffer that has a vocabulary side. It is never derived from V / D: chunk
size decides the speed (too few rows starve the matrix product), so it is an argument in bytes.
"""

from collections.abc import Iterator

from torch import device as Device

MIB = 1 << 20
# On a GPU rows that fill no tile of a product are lost. What is added to an fp32 dW reads and
# writes all of it for each chunk, so that wants many rows: on an H200 (D 8192, V 128256) it runs at
# 159, 441, 597 and 641 TFLOP/s with 256, 1024, 2048 and 4096 rows, where logits and dH have about
# 700 from 256 on. Where nothing is added (a frozen head, DPO), 1 GiB took no more time than 2: 167
# and 165 ms against 164 and 175; 512 MiB took 177 and 174. (benchmarks/results/2026-11-27-gpu-*.md)
_GPU_BUDGET, _GPU_TRAINED, _GPU_TILE = 1024 * MIB, 2048 * MIB, 256
# On a CPU more rows gain nothing: 512 are no faster than 256 at V 32000, D 1024, measured whole.
_CPU_ROWS, _CPU_MOST = 256, 512 * MIB
_CPU_SLICES = 64 * MIB


def token_budget(device: Device, row_bytes: int, trained: bool = False) -> int:
    """Default bytes for chunks of tokens: 256 rows on a CPU (at most 512 MiB), elsewhere 1 GiB.

    Args:
        trained: the head has a gradient: 2 GiB elsewhere.
    """
    if device.type == "cpu":
        return min(_CPU_ROWS * row_bytes, _CPU_MOST)
    return _GPU_TRAINED if trained else _GPU_BUDGET


def slice_budget(device: Device) -> int:
    """Default bytes for slices of the vocabulary: 64 MiB on a CPU, 2 GiB elsewhere."""
    return _CPU_SLICES if device.type == "cpu" else _GPU_TRAINED


def row_tile(device: Device) -> int:
    """Rows that a matrix product works on at a time: chunks should be multiples of it."""
    return 1 if device.type == "cpu" else _GPU_TILE


def token_chunks(
    num_rows: int, row_bytes: int, budget: int, tile: int = 1
) -> Iterator[tuple[int, int]]:
    """Split rows into chunks of nearly equal size whose buffers fit `budget`.

    Args:
        num_rows: scored tokens N.
        row_bytes: bytes of all logits buffers for one row (V × itemsize × number of buffers).
        budget: bytes; at least one row is taken however small it is.
        tile: chunks are multiples of so many rows, where the budget allows as many.
    Yields:
        `(start, stop)` half-open ranges covering 0..num_rows.
    """
    largest = max(1, budget // max(1, row_bytes))
    if 0 < num_rows <= largest:
        yield 0, num_rows
        return
    tile = tile if largest >= tile else 1
    yield from _balanced(num_rows, largest - largest % tile, tile)


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
