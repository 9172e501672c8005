"""What the defaults decide, each decision beside its alternatives: time and memory of a loss.

    python -m benchmarks.gpu.choices [tiles] [kernels] [small] [budgets]

- tiles: TFLOP/s of the small heads' kernels (`prefkit_kernels.backends.triton.small_head`) by tile.
- kernels: what one loss at a small head spends its time on.
- small: small heads whose logits are made again against logits kept.
- budgets: bytes of a chunk's buffers. Products that are added to dW need many rows, others few.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest import mock

import torch

from benchmarks import memory
from benchmarks.gpu.telling import device, median_ms, row, seconds_left, tell, wait
from benchmarks.problems import Case, Problem, build
from benchmarks.questions import tiny
from benchmarks.ways.ours import run
from benchmarks.whole_step.child import Kernels
from prefkit_kernels import token_stats
from prefkit_kernels.backends.triton import small_head
from prefkit_kernels.backends.triton.small_head.launch import Tile
from prefkit_kernels.core.logits import LogitsBlock, LogitScaling

MIB = 1 << 20
_LAST = 4.0  # seconds that are left when nothing further is begun
_HEADS = (("Llama-3-70B", 8192, 128_256), ("Qwen", 2048, 151_936), ("SmolLM2", 576, 49_152))
_TILES = (
    Tile(128, 256, 64, 8, 3, True),
    Tile(128, 256, 64, 8, 4, True),
    Tile(128, 256, 64, 8, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 128, 64, 4, 4),
    Tile(64, 256, 64, 4, 4),
    Tile(64, 128, 64, 4, 4),
)


def step(problem: Problem, budget: int | None = None) -> Callable[[], None]:
    """Forward and backward of a case's loss, its gradients starting from nothing."""

    def once() -> None:
        problem.clear()
        run(problem, memory_budget=budget).loss.backward()

    return once


def measured(once: Callable[[], object], where: str, milliseconds: float) -> dict[str, object]:
    """Median time and peak of a call; memory that is not enough is told, not raised."""
    try:
        once()
        added = memory.on_gpu(once) / 1e6 if where != "cpu" else None
        found = {"ms": round(median_ms(once, where, milliseconds), 2)}
        return {**found, "MB added": None if added is None else round(added)}
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"note": str(error).splitlines()[0][:80]}


def over() -> bool:
    """Whether too little time is left to begin with anything."""
    if seconds_left() >= _LAST:
        return False
    tell(left_out="what follows: the time is over")
    return True


def budgets(where: str) -> None:
    """Frozen and trainable heads by the bytes of a chunk."""
    for name, dim, vocab in _HEADS:
        for loss, frozen in (("dpo", True), ("dpo", False), ("tdpo2", True)):
            case = Case(
                loss=loss, tokens=16_384, dim=dim, vocab=vocab, dtype="bfloat16", frozen=frozen
            )
            problem = build(tiny(case) if where == "cpu" else case, where)
            for budget in (None, 2048, 1024, 512):
                if over():
                    return
                found = measured(step(problem, budget and budget * MIB), where, 200)
                kind = "frozen" if frozen else "trainable"
                row(f"Budgets, {name}: {loss} {kind}", MiB=budget or "default", **found)


@contextlib.contextmanager
def logits_kept(keep: bool) -> Iterator[None]:
    """Small heads store their logits like others, or never do so."""
    with mock.patch.object(small_head, "worthwhile", return_value=not keep):
        yield


def small(where: str) -> None:
    """Forward alone and both losses at small D."""
    for dim in (576, 1024, 1536):
        base = Case(loss="dpo", tokens=16_384, dim=dim, vocab=49_152, dtype="bfloat16")
        cases = {
            "log-probabilities": replace(base, frozen=True, cached_ref=True),
            "dpo": base,
            "dpo, reference cached": replace(base, cached_ref=True),
            "tdpo2": replace(base, loss="tdpo2"),
        }
        for name, case in cases.items():
            if dim > 1024 and name != "log-probabilities":
                continue
            problem = build(tiny(case) if where == "cpu" else case, where)
            for keep in (True, False):
                if over():
                    return
                once = _scores(problem) if name == "log-probabilities" else step(problem)
                with logits_kept(keep or where == "cpu"):
                    found = measured(once, where, 200)
                way = "logits kept" if keep else "made again"
                row(f"Small heads: D {dim}, V 49152, {name}", way=way, **found)


def _scores(problem: Problem) -> Callable[[], None]:
    def once() -> None:
        with torch.no_grad():
            token_stats(problem.hidden, problem.weight, problem.targets, outputs=("logp",))

    return once


def tiles(where: str) -> None:
    """The small heads' kernels alone; what a tile cannot do is told."""
    for dim in (576, 1024):
        for how in _TILES[: 1 if where == "cpu" else None]:
            if over():
                return
            cut = f"{how.tokens} × {how.classes} × {how.depth}" + (", halves" if how.halves else "")
            row(
                f"Tiles, D {dim}",
                tile=cut,
                warps=how.warps,
                stages=how.stages,
                **_tile(where, dim, how),
            )


def _tile(where: str, dim: int, how: Tile) -> dict[str, object]:
    """TFLOP/s of both kernels by one tile."""
    count, vocab = (32, 256) if where == "cpu" else (16_384, 49_152)
    hidden = torch.randn(count, dim, device=where).bfloat16()
    weight = (torch.randn(vocab, dim, device=where) * 3 / dim**0.5).bfloat16()
    targets = torch.randint(0, vocab, (count,), device=where)
    norms, ones = torch.empty(3, count, device=where), torch.ones(1, count, device=where)
    dz = hidden.new_empty(count, vocab)
    shape = torch.empty(count, vocab, device="meta")  # in the place of stored logits
    block = LogitsBlock(shape, None, None, None, targets, LogitScaling(), operands=(hidden, weight))

    def normalisers() -> None:
        small_head.normalisers(block, norms, how)

    def gradient() -> None:
        whole = norms[[0, 1, 0, 1]]
        small_head.gradient(block, ("logp",), ones, whole, ones, dz, None, how)

    found: dict[str, object] = {}
    for kernel in (normalisers, gradient):
        try:
            kernel()
            rate: object = round(2 * count * dim * vocab / median_ms(kernel, where, 60) / 1e9)
        except Exception as error:  # whatever a compiler says: the next tile may do
            rate = (str(error).splitlines() or ["?"])[0][:60]
        found[f"{kernel.__name__} TFLOP/s"] = rate
    return found


def kernels(where: str) -> None:
    """What one loss spends its time on: at a small head in both ways, at one of Qwen's."""
    for dim, vocab, keep in ((576, 49_152, False), (576, 49_152, True), (2048, 151_936, True)):
        case = Case(loss="dpo", tokens=16_384, dim=dim, vocab=vocab, dtype="bfloat16")
        once = step(build(tiny(case) if where == "cpu" else case, where))
        with logits_kept(keep or where == "cpu"):
            for _ in range(3):
                once()
            wait(where)
            start, found = time.perf_counter(), Kernels()
            once()
            wait(where)
            took = 1e3 * (time.perf_counter() - start)
        title = f"Kernels of a DPO loss, D {dim}, logits {'kept' if keep else 'made again'}"
        told = found.stop()
        filled = sum(milliseconds for _, milliseconds, _ in told)
        row(
            title, kernel="all, and the time by the clock under the profiler", ms=filled, clock=took
        )
        for name, milliseconds, calls in told:
            row(title, ms=round(milliseconds, 3), calls=calls, kernel=name[:90])


PARTS = {"tiles": tiles, "kernels": kernels, "small": small, "budgets": budgets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)} (all)")
    options = parser.parse_args()
    where = device()
    for name in options.part or PARTS:
        PARTS[name](where)


if __name__ == "__main__":
    main()
