"""Smoke checks of what surrounds the kernels: scaling, attention, graphs, synchronisations, bits.

Graphs and synchronisations exist on a GPU alone; elsewhere the same step runs without them.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.telling import median_ms
from benchmarks.problems import Case, Problem, build
from prefkit import TDPO, fused_preference_loss
from prefkit.data.batch.stream import EVERYTHING, Reach, Stream
from prefkit.model.attention.compute.attend import attend, forced
from prefkit.model.attention.compute.blockwise import Blockwise
from prefkit.model.attention.compute.varlen import varlen_kernel
from prefkit_kernels.pair_scores.keep_dz import scale_rows

Check = Callable[[], dict[str, Any]]


def scaled(
    direction: torch.dtype, out: torch.dtype | None, shape: tuple[int, ...], where: str
) -> dict:
    """direction ⊙ factors rounded once; `out` None: in the direction's own memory."""
    rows = torch.randn(shape, device=where).to(direction)
    kind = torch.float64 if direction == torch.float64 else torch.float32
    factors = torch.randn(shape[0], device=where, dtype=kind)
    true = rows.to(kind) * factors.view(-1, *(1,) * (len(shape) - 1))
    target = rows if out is None else torch.full(shape, torch.nan, device=where, dtype=out)
    scale_rows(rows, factors, target)
    return {"ok": torch.equal(target, true.to(target.dtype))}


def step_tree(prompt: int, count: int, length: int) -> Stream:
    """A solution of so many steps, each with one wrong sibling."""
    tree: int | tuple[object, ...] = length
    for _ in range(count - 1):
        tree = (length, tree, length)
    return Stream.of((prompt, tree, length))


def attention(
    heads: int,
    groups: int,
    width: int,
    where: str,
    reach: Reach = EVERYTHING,
    sinks: bool = False,
    values: int | None = None,
    softcap: float | None = None,
    deep: bool = False,
    way: str | None = None,
) -> dict[str, Any]:
    """Trees with and without a shared trunk, forward and backward, against plain torch in fp32.

    Args:
        heads, groups, width: query heads, key heads, and numbers of each.
        where: the device.
        reach: how far back a token sees.
        sinks: a learnt score a head that gives nothing.
        values: numbers of a value, where they are not those of a key.
        softcap: of the scores.
        deep: a tree whose branches read more keys than one variable-length call gathers.
        way: of computing it, else the one that is taken here.
    """
    small = where == "cpu"
    if deep:
        stream = step_tree(20, 4, 3) if small else step_tree(100, 20, 30)
    elif small:
        stream = Stream.of((9, 4, (1, 3, 2)), 5)
    else:
        stream = Stream.of((300, 270, (20, 40, 30)), 33, (5, 40, 9, 3))
    dtype = torch.float32 if small else torch.bfloat16
    keys = (1, groups, len(stream))
    shapes: list[Any] = [(1, heads, len(stream), width), (*keys, width), (*keys, values or width)]
    shapes += [(heads,)] if sinks else []
    given = [torch.randn(s, device=where, dtype=dtype).requires_grad_() for s in shapes]
    sink = given[3] if sinks else None
    # On a CPU there is nothing to call with variable lengths.
    chosen = contextlib.nullcontext() if way is None or (small and way == "varlen") else forced(way)
    with chosen:
        out = attend(*given[:3], stream, None, softcap, reach, sink)  # type: ignore[misc]
    upstream = torch.randn_like(out)
    mine = (out, *torch.autograd.grad(out, given, upstream))
    exact = [x.detach().float().requires_grad_() for x in given]
    options = (stream, width**-0.5, softcap, reach.within(stream.longest))
    plain = Blockwise.apply(*exact[:3], *options, exact[3] if sinks else None)
    true = (plain, *torch.autograd.grad(plain, exact, upstream.float()))
    wrong = [float(((a - b).norm() / b.norm()).detach()) for a, b in zip(mine, true, strict=True)]
    named = dict(zip(("out", "dq", "dk", "dv", "ds"), (round(x, 5) for x in wrong), strict=False))
    # A warning tells of a kernel that was left aside: then plain torch agrees with itself.
    used = small or type(out.grad_fn).__name__ != "BlockwiseBackward"
    kernel = "" if used else "no kernel agreed with plain torch: see the log"
    return {"ok": used and max(wrong) < (1e-5 if small else 2e-2), **named, "why": kernel}


def loss_step(problem: Problem) -> Tensor:
    """A whole TDPO2 step told all counts, as the trainer does it."""
    problem.clear()
    out = fused_preference_loss(
        problem.hidden,
        problem.weight,
        problem.targets,
        problem.segments,
        TDPO(),
        ref_hidden=problem.ref_hidden,
        ref_weight=problem.ref_weight,
        pairs_in_call=problem.case.pairs,
        num_scored=problem.case.scored,
    )
    out.loss.backward()
    return out.loss.detach()


def small_problem(where: str, tokens: int = 64, frozen: bool = False) -> Problem:
    shape = {"dim": 16, "vocab": 64} if where == "cpu" else {"dim": 576, "vocab": 49_152}
    case = Case(loss="tdpo2", tokens=tokens, dtype="bfloat16", frozen=frozen, **shape)  # type: ignore[arg-type]
    return build(case, where)


def results(problem: Problem) -> list[Tensor]:
    grads = [x for x in (problem.hidden.grad, problem.weight.grad) if x is not None]
    return [grad.clone() for grad in grads]


def graph(frozen: bool, where: str) -> dict[str, Any]:
    """A step captured in a CUDA graph: replayed on other inputs it gives what the step gives."""
    problem = small_problem(where, frozen=frozen)
    for _ in range(2):
        loss_step(problem)
    if where == "cpu":
        return {"ok": True}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            loss_step(problem)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        loss = loss_step(problem)
    held = [x for x in (problem.hidden.grad, problem.weight.grad) if x is not None]
    with torch.no_grad():
        problem.hidden.add_(torch.randn_like(problem.hidden), alpha=0.05)
    captured.replay()
    torch.cuda.synchronize()
    replayed = [loss.clone(), *(x.clone() for x in held)]
    eager = [loss_step(problem), *results(problem)]
    same = all(torch.equal(a, b) for a, b in zip(replayed, eager, strict=True))
    times = {"replay_us": median_ms(captured.replay, where) * 1e3}
    times["eager_us"] = median_ms(lambda: loss_step(problem), where) * 1e3
    return {"ok": same, **{name: round(value, 1) for name, value in times.items()}}


@contextlib.contextmanager
def synchronisations_refused(where: str) -> Iterator[None]:
    if where == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def unsynchronised(frozen: bool, where: str) -> dict[str, Any]:
    """A step that is told its counts never waits for the GPU."""
    problem = small_problem(where, frozen=frozen)
    loss_step(problem)  # compiling and probing may wait
    with synchronisations_refused(where):
        loss_step(problem)
    return {}


def same_bits(frozen: bool, where: str) -> dict[str, Any]:
    """The same inputs give the same bits, over several chunks."""
    problem = small_problem(where, 64 if where == "cpu" else 16_384, frozen)
    first, again = ([loss_step(problem), *results(problem)] for _ in range(2))
    return {"ok": all(torch.equal(a, b) for a, b in zip(first, again, strict=True))}


def everywhere(where: str) -> Iterator[tuple[str, Check]]:
    """Checks that a CPU can judge too."""
    low = (torch.bfloat16, torch.float16)
    cases = [(torch.float32, out) for out in (None, torch.float32, *low)]
    cases += [(dtype, None) for dtype in low] + [(torch.float64, torch.float64)]
    for direction, out in cases:
        for shape in ((7,), (5, 3)) if where == "cpu" else ((4097,), (5001, 1021)):
            name = f"scale_rows, {direction} to {out or 'itself'}, {shape}".replace("torch.", "")
            yield name, partial(scaled, direction, out, shape, where)
    for heads, groups, width in ((8, 8, 64), (8, 2, 128), (9, 3, 64)):
        name = f"attention over a stream, {heads} heads of {width}, {groups} of keys"
        yield f"{name} ({_kernel(where)})", partial(attention, heads, groups, width, where)
    for words, more in (
        ("a window of 50", {"reach": Reach(50)}),
        ("chunks of 128", {"reach": Reach(chunk=128)}),
        ("sinks", {"sinks": True}),
        ("a window of 50 and sinks", {"reach": Reach(50), "sinks": True}),
        ("values of 64", {"values": 64}),
    ):
        run = partial(attention, 8, 2, 128, where, **more)  # type: ignore[arg-type]
        yield f"attention over a stream, 8 heads of 128, 2 of keys, {words}", run
    for frozen in (False, True):
        words = "frozen" if frozen else "trainable"
        yield f"the same bits twice, {words}", partial(same_bits, frozen, where)


def ways_over_trees(where: str) -> Iterator[tuple[str, Check]]:
    """Each way to attend that a GPU may take, over trees: what `benchmarks.gpu.attention` times."""
    chunks, both = Reach(chunk=128), {"reach": Reach(50), "sinks": True}
    for words, more in (
        ("a deep tree", {"deep": True, "way": "varlen"}),
        ("a deep tree, a window of 50 and sinks", {"deep": True, "way": "varlen", **both}),
        ("FlexAttention, a deep tree", {"deep": True, "way": "flex"}),
        ("FlexAttention, a window of 50 and sinks", {"deep": True, "way": "flex", **both}),
        ("FlexAttention, chunks and a cap", {"way": "flex", "reach": chunks, "softcap": 30.0}),
        ("FlexAttention, values of 64", {"way": "flex", "values": 64}),
    ):
        run = partial(attention, 8, 2, 128, where, **more)  # type: ignore[arg-type]
        yield f"attention over a stream, 8 heads of 128, 2 of keys, {words}", run


def _kernel(where: str) -> str:
    if where == "cpu":
        return "plain torch"
    kernel = varlen_kernel()
    return "no kernel" if kernel is None else f"{kernel.__module__}.{kernel.__qualname__}"


def gpu_alone(where: str) -> Iterator[tuple[str, Check]]:
    """Checks of what only a GPU has."""
    # Graphs last: a capture that fails may leave the process unusable.
    for name, check in (("without synchronisation", unsynchronised), ("in a CUDA graph", graph)):
        for frozen in (False, True):
            words = "frozen" if frozen else "trainable"
            yield f"a step {name}, {words}", partial(check, frozen, where)
