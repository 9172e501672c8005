"""How many rows or vocabulary columns are worked on at a time.

A byte budget bounds every buffer that has a vocabulary side. It is never derived from V / D: chunk
size decides the speed (too few rows starve the matrix product), so it is an argument in bytes.
"""

from collections.abc import Iterator

from torch import device as Device

MIB = 1 << 20
# On a GPU small chunks starve the matrix products, and rows that fill no tile of them are lost: 820
# rows of 256-row tiles waste a fifth. (Arithmetic; not measured on a GPU.)
_GPU_BUDGET, _GPU_TILE = 2048 * MIB, 256
# On a CPU more rows gain nothing: 512 are no faster than 256 at V 32000, D 1024, measured whole.
_CPU_ROWS, _CPU_MOST = 256, 512 * MIB
_CPU_SLICES = 64 * MIB


def token_budget(device: Device, row_bytes: int) -> int:
    """Default bytes for chunks of tokens: 256 rows on a CPU (at most 512 MiB), 2 GiB elsewhere."""
    return min(_CPU_ROWS * row_bytes, _CPU_MOST) if device.type == "cpu" else _GPU_BUDGET


def slice_budget(device: Device) -> int:
    """Default bytes for slices of the vocabulary: 64 MiB on a CPU, 2 GiB elsewhere."""
    return _CPU_SLICES if device.type == "cpu" else _GPU_BUDGET


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
