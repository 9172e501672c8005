"""Attention of a layer over pairs and trees, which read a shared prefix once.

Of a pair beside two rows in full; of trees by variable-length calls in groups, by FlexAttention and
by plain torch, the first two checked before. Forward and backward at the heads of Llama-3.2-1B.
"New length": the first call at a length that was not there before, above what a repeated call
takes; rows of real data have a new length in almost every step, and cuDNN makes a plan for each.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.smoke_gpu import step_tree, ways_over_trees
from benchmarks.gpu.telling import Checks, device, median_ms, row, seconds_left, tell, wait
from benchmarks.memory import on_gpu
from prefkit.data.batch.stream import Stream
from prefkit.model.attention.compute.attend import attend, forced

_HEADS, _GROUPS, _WIDTH = 32, 8, 64
_SHAPES = ((8192, 100), (2048, 4096), (256, 1024))  # tokens of the prefix and of a side
_BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
_NEW = 3  # lengths tried
_LAST = 4.0  # seconds that are left when nothing further is begun
_WAYS = {"varlen": "variable length, in groups", "flex": "FlexAttention", "plain": "plain torch"}


def operands(tokens: int, where: str, rows: int = 1) -> list[Tensor]:
    """q, k, v: (rows, heads, tokens, 64) in bf16, with gradients."""
    kind = torch.float32 if where == "cpu" else torch.bfloat16
    shapes = ((rows, heads, tokens, _WIDTH) for heads in (_HEADS, _GROUPS, _GROUPS))
    return [torch.randn(s, device=where, dtype=kind).requires_grad_() for s in shapes]


def ours(prefix: int, side: int, where: str) -> Callable[[], object]:
    """The stream of a pair."""
    stream = Stream.of((prefix, side, side))
    q, k, v = operands(len(stream), where)
    grad = torch.randn_like(q)
    return lambda: torch.autograd.grad(attend(q, k, v, stream), (q, k, v), grad)


def in_full(prefix: int, side: int, where: str, backend: str) -> Callable[[], object]:
    """Both sides as rows [prefix, side], by one of torch's kernels."""
    q, k, v = operands(prefix + side, where, rows=2)
    grad = torch.randn_like(q)

    def run() -> object:
        kernels = [_BACKENDS[backend]] if where != "cpu" else [SDPBackend.MATH]
        with sdpa_kernel(kernels):
            out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return torch.autograd.grad(out, (q, k, v), grad)

    return run


def first_call_ms(make: Callable[[int], Callable[[], object]], where: str) -> float:
    """The least of a few first calls, each at a length of its own."""
    found = []
    for i in range(1 if where == "cpu" else _NEW):
        run = make(i)
        wait(where)
        start = time.perf_counter()
        run()
        wait(where)
        found.append(1e3 * (time.perf_counter() - start))
    return min(found)


def star(trunk: int, count: int, length: int) -> Stream:
    """So many branches on one trunk."""
    return Stream.of((trunk, *[length] * count))


def in_one_way(stream: Stream, way: str, where: str) -> Callable[[], object]:
    """Forward and backward of a tree by one way of `attend`."""
    q, k, v = operands(len(stream), where)
    grad = torch.randn_like(q)

    def run() -> object:
        with forced(way):
            return torch.autograd.grad(attend(q, k, v, stream), (q, k, v), grad)

    return run


def trees(where: str) -> None:
    """Every way over trees: what `attend` should prefer is what is fastest here."""
    small = where == "cpu"
    makers: dict[str, Callable[[int], Stream]] = {
        "a step tree, 200 + 24 steps of 40 with a wrong sibling each": lambda i: (
            step_tree(20, 3, 4 + i) if small else step_tree(200, 24, 40 + i)
        ),
        "a tree of 32k, 200 branches": lambda i: (
            star(20, 5, 4 + i) if small else star(8192, 200, 123 + i)
        ),
    }
    for name, make in makers.items():
        for way, words in _WAYS.items():
            if seconds_left() < _LAST:
                tell(left_out=f"{name}, {words} and what follows: the time is over")
                return
            title = f"Attention of a layer, {name}"
            try:
                start = time.perf_counter()
                run = in_one_way(make(0), way, where)
                run()
                wait(where)
                first = time.perf_counter() - start
                steady = median_ms(run, where, 60)
                more = {} if small else {"MB added": round(on_gpu(run) / 1e6)}
                new = first_call_ms(
                    lambda i, way=way, make=make: in_one_way(make(i + 1), way, where), where
                )
                cells = {"first_s": round(first, 1), "ms": round(steady, 2), **more}
                row(title, way=words, **cells, new_length=round(new - steady, 1))
            except RuntimeError as error:  # no such kernel here, or memory that is not enough
                row(title, way=words, note=(str(error).splitlines() or ["?"])[0][:80])


def pairs(where: str) -> None:
    """A pair's row beside two rows in full."""
    for prefix, side in ((16, 8),) if where == "cpu" else _SHAPES:
        makers: dict[str, Callable[[int], Callable[[], object]]] = {
            "prefkit, the prefix once": lambda i, p=prefix, s=side: ours(p, s + 8 * i, where)
        }
        for name in _BACKENDS:
            makers[f"two rows, {name}"] = lambda i, p=prefix, s=side, n=name: in_full(
                p, s + 8 * i, where, n
            )
        for name, make in makers.items():
            title = f"Attention of a layer, {prefix} + {side} | {side} tokens"
            try:
                run = make(0)
                run()
                steady = median_ms(run, where, 60)
                new = first_call_ms(lambda i, make=make: make(i + 1), where)
                row(title, way=name, ms=round(steady, 2), new_length=round(new - steady, 1))
            except RuntimeError as error:
                row(title, way=name, note=(str(error).splitlines() or ["?"])[0][:80])


def main() -> None:
    where = device()
    pairs(where)
    run = Checks(where)
    for name, check in ways_over_trees(where):
        run(name, check)
    trees(where)
    run.exit()


if __name__ == "__main__":
    main()
