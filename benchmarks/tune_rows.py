"""Sweeps the Triton kernels' launches on a GPU: GB/s of every block size and number of warps.

    python -m benchmarks.tune_rows                       # the vocabularies and kernels that matter
    python -m benchmarks.tune_rows --vocab 50257 --rows 16
    python -m benchmarks.tune_rows --vocab 128256 --compile-in 8

Compiling takes most of the time (80 kernels a vocabulary, 1 to 2 s each); `--compile-in` has
several processes fill Triton's cache first. Each table is also told as a line of JSON.
PREFKIT_GPU_REHEARSE=1 runs the same on a CPU (TRITON_INTERPRET=1): one launch, few rows.

The project's own choice (`backends/triton/launch.py`) carries a star, so a table in which another
cell is clearly larger says what to change there. All kernels are bound by memory: a plain copy's
GB/s on the same device is the limit and is printed first. Refuses where there is no GPU.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.gpu.telling import median_ms, rehearsing, tell
from prefkit_kernels.backends import triton as triton_kernels
from prefkit_kernels.backends.triton.launch import Launch, launch
from prefkit_kernels.core.logits import LogitsBlock, LogitScaling

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
    block = LogitsBlock(z, zr, None, None, targets, LogitScaling())
    norms = torch.empty(2, 3, count, device=device)
    triton_kernels.normalisers(block, norms[0])
    triton_kernels.normalisers(replace(block, raw=zr), norms[1])
    whole = norms[:, :2].reshape(4, count)
    ones, kl = torch.ones(2, count, device=device), torch.empty(count, device=device)
    half, sums = torch.empty_like(z, dtype=torch.bfloat16), torch.empty(1, count, device=device)

    def gradient(outputs: tuple[str, ...], out: Tensor, kl_sum: Tensor | None, how: Launch) -> None:
        used = ones[: len(outputs)]
        triton_kernels.gradient(block, outputs, used, whole, used, out, kl_sum, how)

    both, cells = ("logp", "kl"), z.numel()
    return [
        Kernel("norms", 1, 4 * cells, lambda how: triton_kernels.normalisers(block, norms[0], how)),
        Kernel(
            "class_sums kl",
            2,
            8 * cells,
            lambda how: triton_kernels.class_sums(block, ("kl",), whole, sums, how),
        ),
        Kernel("gradient dpo", 1, 6 * cells, lambda how: gradient(both[:1], half, None, how)),
        Kernel("gradient tdpo", 2, 10 * cells, lambda how: gradient(both, half, kl, how)),
        # Last, since it writes over the logits: from here on they are numbers of no meaning.
        Kernel("gradient tdpo, in place", 2, 12 * cells, lambda how: gradient(both, z, kl, how)),
    ]


def rate(kernel: Kernel, how: Launch, device: str = "cuda") -> float:
    """GB/s, from the median of repeated runs."""
    return kernel.nbytes / median_ms(lambda: kernel.run(how), device, 60) / 1e6


def copy_rate(nbytes: int, device: str = "cuda") -> float:
    """GB/s of a device copy, read and write counted."""
    source = torch.randn(nbytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / median_ms(lambda: target.copy_(source), device, 100) / 1e6


def launches(rehearsal: bool = False) -> list[Launch]:
    """What is tried, in the order of the table."""
    some = [Launch(block, warps) for block in BLOCKS for warps in WARPS]
    return [Launch(64, 1)] if rehearsal else some


def compile_first(vocab: int, processes: int) -> None:
    """Fills Triton's cache: each process launches its share of the kernels once.

    Rows are a multiple of 16, as they are in the sweep: their number must not compile anew.
    """
    command = [sys.executable, "-m", "benchmarks.tune_rows", "--vocab", str(vocab)]
    shares = [f"{share}/{processes}" for share in range(processes)]
    running = [subprocess.Popen([*command, "--rows", "16", "--share", s]) for s in shares]
    for process in running:
        process.wait()


def launch_share(vocab: int, rows: int, share: str, device: str, rehearsal: bool) -> None:
    """Every n-th kernel and launch, once."""
    first, of = map(int, share.split("/"))
    every = [(k, how) for k in kernels(vocab, rows, device) for how in launches(rehearsal)]
    for kernel, how in every[first::of]:
        kernel.run(how)


def table(kernel: Kernel, vocab: int, measured: dict[Launch, float]) -> str:
    """Blocks down, warps across; a star at the project's choice, a dash where nothing was tried."""
    chosen = launch(vocab, kernel.heads)
    lines = [f"V {vocab}, {kernel.name}: GB/s", "block " + "".join(f"{w:>4} warps" for w in WARPS)]
    for block in BLOCKS:
        cells = (Launch(block, warps) for warps in WARPS)
        rates = (_cell(measured.get(how), how == chosen) for how in cells)
        lines.append(f"{block:<6}" + "".join(rates))
    return "\n".join(lines)


def _cell(rate: float | None, chosen: bool) -> str:
    return f"{'–' if rate is None else f'{rate:.0f}':>9}{'*' if chosen else ' '}"


def sweep(vocab: int, rows: int | None, device: str, rehearsal: bool) -> None:
    """One vocabulary: prints and tells every kernel's table as soon as it is there."""
    count = rows or LOGITS_BYTES // (4 * vocab) // 16 * 16
    for kernel in kernels(vocab, count, device):
        measured = {how: rate(kernel, how, device) for how in launches(rehearsal)}
        text = table(kernel, vocab, measured)
        print(text, flush=True)
        best = max(measured, key=lambda how: measured[how])
        chosen = measured.get(launch(vocab, kernel.heads))
        tell(
            row=f"GB/s of the kernels over logits, V {vocab}",
            kernel=kernel.name,
            best=f"{best.block} × {best.warps} warps",
            **{"GB/s": round(measured[best]), "of the project's choice": chosen and round(chosen)},
        )
        tell(markdown=f"```text\n{text}\n```")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABS)
    parser.add_argument("--rows", type=int, help="default: 1 GiB of logits")
    parser.add_argument("--compile-in", type=int, default=0, metavar="N", help="processes")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    rehearsal = rehearsing()
    if not rehearsal and not torch.cuda.is_available():
        raise SystemExit(
            "tune_rows times kernels on a GPU, and torch.cuda.is_available() is False here: run it "
            "on a machine with a GPU and a torch built for it."
        )
    device = "cpu" if rehearsal else "cuda"
    vocabs, rows = ([300], 2) if rehearsal else (given.vocab, given.rows)
    if given.share:
        return launch_share(vocabs[0], rows or 16, given.share, device, rehearsal)
    name = "a rehearsal" if rehearsal else torch.cuda.get_device_name(0)
    nbytes = 4096 if rehearsal else LOGITS_BYTES
    print(f"{name}: a copy runs at {copy_rate(nbytes, device):.0f} GB/s")
    for vocab in vocabs:
        if given.compile_in:
            compile_first(vocab, 1 if rehearsal else given.compile_in)
        sweep(vocab, rows, device, rehearsal)


if __name__ == "__main__":
    main()
