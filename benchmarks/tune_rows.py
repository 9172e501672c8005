"""Sweeps the Triton row kernels' launches on a GPU: GB/s of every block size and number of warps.

    python -m benchmarks.tune_rows                       # the vocabularies and kernels that matter
    python -m benchmarks.tune_rows --vocab 50257 --rows 16

The project's own choice (`rows_triton.launch`) carries a star, so a table in which another cell is
clearly larger says what to change there. All kernels are bound by memory: a plain copy's GB/s on
the same device is the limit and is printed first. Refuses where there is no GPU.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefkit_kernels import rows_triton
from prefkit_kernels.logits import LogitTransform
from prefkit_kernels.rows import Rows
from prefkit_kernels.rows_triton import Launch

VOCABS = (32_000, 49_152, 128_256, 152_064)
BLOCKS = (1024, 2048, 4096, 8192)
WARPS = (2, 4, 8, 16)
LOGITS_BYTES = 1 << 30  # of one head's fp32 logits: what a default budget holds on a GPU


@dataclass(frozen=True)
class Kernel:
    """One kernel ready to run on logits that are there.

    Attributes:
        heads: 1 or 2 rows of logits that it reads.
        nbytes: what it has to read and write.
        run: launches it once.
    """

    name: str
    heads: int
    nbytes: int
    run: Callable[[Launch], None]


def kernels(vocab: int, count: int, device: str) -> list[Kernel]:
    """The kernels of DPO and TDPO with a gradient in bf16, and a TDPO gradient in place."""
    draw = torch.Generator(device).manual_seed(0)
    z = torch.randn(count, vocab, generator=draw, device=device)
    zr = z + 0.1 * torch.randn(count, vocab, generator=draw, device=device)
    targets = torch.randint(0, vocab, (count,), generator=draw, device=device)
    rows = Rows(z, zr, None, None, targets, LogitTransform())
    norms = torch.empty(2, 3, count, device=device)
    rows_triton.normalisers(rows, norms[0])
    rows_triton.normalisers(replace(rows, raw=zr), norms[1])
    whole = norms[:, :2].reshape(4, count)
    ones, kl = torch.ones(2, count, device=device), torch.empty(count, device=device)
    half, sums = torch.empty_like(z, dtype=torch.bfloat16), torch.empty(1, count, device=device)

    def gradient(outputs: tuple[str, ...], out: Tensor, kl_sum: Tensor | None, how: Launch) -> None:
        used = ones[: len(outputs)]
        rows_triton.gradient(rows, outputs, used, whole, used, out, kl_sum, how)

    both, cells = ("logp", "kl"), z.numel()
    return [
        Kernel("norms", 1, 4 * cells, lambda how: rows_triton.normalisers(rows, norms[0], how)),
        Kernel(
            "class_sums kl",
            2,
            8 * cells,
            lambda how: rows_triton.class_sums(rows, ("kl",), whole, sums, how),
        ),
        Kernel("gradient dpo", 1, 6 * cells, lambda how: gradient(both[:1], half, None, how)),
        Kernel("gradient tdpo", 2, 10 * cells, lambda how: gradient(both, half, kl, how)),
        # Last, since it writes over the logits: from here on they are numbers of no meaning.
        Kernel("gradient tdpo, in place", 2, 12 * cells, lambda how: gradient(both, z, kl, how)),
    ]


def rate(kernel: Kernel, how: Launch) -> float:
    """GB/s, from the median of repeated runs."""
    from triton.testing import do_bench

    return kernel.nbytes / do_bench(lambda: kernel.run(how), return_mode="median") / 1e6


def copy_rate() -> float:
    """GB/s of a device copy, read and write counted."""
    from triton.testing import do_bench

    source = torch.empty(LOGITS_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * LOGITS_BYTES / do_bench(lambda: target.copy_(source), return_mode="median") / 1e6


def table(kernel: Kernel, vocab: int, measured: dict[Launch, float]) -> str:
    """Blocks down, warps across; a star at the project's choice."""
    chosen = rows_triton.launch(vocab, kernel.heads)
    lines = [f"V {vocab}, {kernel.name}: GB/s", "block " + "".join(f"{w:>4} warps" for w in WARPS)]
    for block in BLOCKS:
        cells = (Launch(block, warps) for warps in WARPS)
        rates = (f"{measured[how]:>9.0f}{'*' if how == chosen else ' '}" for how in cells)
        lines.append(f"{block:<6}" + "".join(rates))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABS)
    parser.add_argument("--rows", type=int, help="default: 1 GiB of logits")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit(
            "tune_rows times kernels on a GPU, and torch.cuda.is_available() is False here: run it "
            "on a machine with a GPU and a torch built for it."
        )
    print(f"{torch.cuda.get_device_name(0)}: a copy runs at {copy_rate():.0f} GB/s")
    for vocab in given.vocab:
        count = given.rows or LOGITS_BYTES // (4 * vocab)
        for kernel in kernels(vocab, count, "cuda"):
            launches = [Launch(block, warps) for block in BLOCKS for warps in WARPS]
            print(table(kernel, vocab, {how: rate(kernel, how) for how in launches}), flush=True)


if __name__ == "__main__":
    main()
