"""Products of the head's shapes: TFLOP/s by rows of a chunk, and what an odd width costs.

For every head: logits in fp32 and in bf16, dH and dW in fp32, dW added to an fp32 matrix (beta = 1)
and dW in bf16. Rows that fill no tile of a product are lost, so the sizes go around multiples of
256. Last the 8B head with one class more, once with rows of its own odd width and once padded.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.telling import device, median_ms, row, seconds_left, tell

HEADS = ((8192, 128_256), (4096, 128_256), (2048, 151_936), (576, 49_152))
ROWS = (64, 256, 768, 820, 1024, 1536, 2048, 4096)
ODD = (4096, 128_257, 1024)
_HALF = torch.bfloat16
_LAST = 3.0  # seconds that are left when no further shape is begun


def fp32_product(a: Tensor, b: Tensor, out: Tensor) -> Callable[[], Tensor]:
    """a @ b with an fp32 result: by cuBLAS on a GPU, from upcast operands elsewhere."""
    if a.is_cuda:
        return lambda: torch.mm(a, b, out_dtype=torch.float32, out=out)
    return lambda: torch.mm(a.float(), b.float(), out=out)


def fp32_added(a: Tensor, b: Tensor, out: Tensor) -> Callable[[], Tensor]:
    """out += a @ b, likewise."""
    if a.is_cuda:
        return lambda: torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    return lambda: out.addmm_(a.float(), b.float())


def rates(runs: dict[str, Callable[[], Tensor]], flop: int, where: str) -> dict[str, object]:
    """TFLOP/s of every product; one that fails has its reason instead."""
    found: dict[str, object] = {}
    for name, run in runs.items():
        try:
            found[name] = round(flop / median_ms(run, where) / 1e9, 1)
        except RuntimeError as error:
            found[name] = str(error).splitlines()[0][:60]
    return found


def by_rows(dim: int, vocab: int, counts: tuple[int, ...], where: str) -> None:
    """One head, a line for each number of rows."""
    weight = torch.randn(vocab, dim, device=where, dtype=_HALF)
    total, half = torch.zeros(vocab, dim, device=where), torch.empty_like(weight)
    for count in counts:
        if seconds_left() < _LAST:
            tell(left_out=f"D {dim}, V {vocab}, {count} rows and more: the time is over")
            return
        hidden = torch.randn(count, dim, device=where, dtype=_HALF)
        logits = torch.empty(count, vocab, device=where)
        dz, rounded = torch.randn_like(logits).to(_HALF), torch.empty_like(logits, dtype=_HALF)
        dh = torch.empty(count, dim, device=where)
        runs = {
            "logits fp32": fp32_product(hidden, weight.T, logits),
            "logits bf16": lambda: torch.mm(hidden, weight.T, out=rounded),  # noqa: B023
            "dH fp32": fp32_product(dz, weight, dh),
            "dW fp32": fp32_product(dz.T, hidden, total),
            "dW fp32 added": fp32_added(dz.T, hidden, total),
            "dW bf16": lambda: torch.mm(dz.T, hidden, out=half),  # noqa: B023
        }
        found = rates(runs, 2 * count * dim * vocab, where)
        row(f"TFLOP/s, D {dim}, V {vocab}", rows=count, **found)


def by_stride(dim: int, vocab: int, count: int, where: str) -> None:
    """A vocabulary of odd size, with rows of its width and of the next multiple of 16."""
    weight = torch.randn(vocab, dim, device=where, dtype=_HALF)
    hidden = torch.randn(count, dim, device=where, dtype=_HALF)
    total, dh = torch.empty(vocab, dim, device=where), torch.empty(count, dim, device=where)
    for stride in (vocab, -(-vocab // 16) * 16):
        logits = torch.empty(count, stride, device=where)[:, :vocab]
        dz = torch.randn(count, stride, device=where, dtype=_HALF)[:, :vocab]
        runs = {
            "logits fp32": fp32_product(hidden, weight.T, logits),
            "dH fp32": fp32_product(dz, weight, dh),
            "dW fp32": fp32_product(dz.T, hidden, total),
            "dW fp32 added": fp32_added(dz.T, hidden, total),
        }
        found = rates(runs, 2 * count * dim * vocab, where)
        row(f"TFLOP/s, D {dim}, V {vocab}, {count} rows", stride=stride, **found)


def main() -> None:
    where = device()
    small = where == "cpu"
    by_stride(*((16, 301, 8) if small else ODD), where)
    for dim, vocab in HEADS:
        try:
            by_rows(*((8, 256) if small else (dim, vocab)), ROWS[:1] if small else ROWS, where)
        except torch.OutOfMemoryError as error:  # a smaller card: the next head may fit
            tell(left_out=f"D {dim}, V {vocab}: {str(error).splitlines()[0][:150]}")


if __name__ == "__main__":
    main()
