"""A whole optimiser step of a model of about 1 B: `PreferenceTrainer` beside TRL's `DPOTrainer`.

DPO, bf16 mixed precision over fp32 weights, fused AdamW, the reference a frozen copy computed in
every step, activation checkpointing, sdpa: the same for both, and TRL's best that runs here (its
padding-free rows are unavailable since its refactoring; both sides have one length, so that its
attention has no mask). Both live in processes of their own and take steps in turn.

MFU counts useful operations alone and of both trainers the same: what two rows [prefix, answer]
of the pair need, each read in full, nothing recomputed. With T tokens of a row, A of them scored,
P weights of the body's products, L layers:

    F(row) = 2·P·T + 2·L·D·T² + 2·V·D·A          forward: products, causal attention, head
    useful = Σ over both rows of 4·F             policy forward and backward 3, reference 1

over the time and the 8192³ bf16 product measured in the same step. A trainer that reads a shared
prefix once does less than is counted; the tokens that its policy read stand beside it.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from benchmarks.gpu import kernels
from benchmarks.gpu.ceilings import product_rate
from benchmarks.gpu.telling import device, row, seconds_left, tell
from benchmarks.whole_step.shapes import BODIES, Shape
from benchmarks.whole_step.turns import Contestant, Result

WAYS = ("prefkit", "trl")
ROUNDS = 5
_LARGE = {"body": "llama-1b", "bf16": True, "exact": True, "checkpointing": True, "device": "cuda"}
SHAPES = (
    Shape(prefix=8192, chosen=100, rejected=100, words="a prefix of 8k and one step", **_LARGE),  # type: ignore[arg-type]
    Shape(prefix=2048, chosen=4096, rejected=4096, words="2k of prompt, 4k answers", **_LARGE),  # type: ignore[arg-type]
)


def useful_flop(shape: Shape) -> float:
    """Operations of a step by the formula above; the end of sequence is one more token a side."""
    body = BODIES[shape.body]
    layers, dim, vocab = (body[n] for n in ("num_hidden_layers", "hidden_size", "vocab_size"))
    keys = dim * body.get("num_key_value_heads", body["num_attention_heads"])
    keys //= body["num_attention_heads"]
    weights = layers * (2 * dim * dim + 2 * dim * keys + 3 * dim * body["intermediate_size"])
    total = 0.0
    for answer in (shape.chosen + 1, shape.rejected + 1):
        tokens = shape.prefix + answer
        attention = 2 * layers * dim * tokens**2
        total += 4 * (2 * weights * tokens + attention + 2 * vocab * dim * answer)
    return total


def shrunk(shape: Shape) -> Shape:
    """For a rehearsal."""
    small = replace(shape, prefix=24, chosen=6, rejected=6)
    return replace(small, body="minute", device="cpu")


def take_turns(shape: Shape, ways: Sequence[str], rounds: int) -> dict[str, Result | str]:
    """Every way's result, or in words why there is none; one that fails leaves the others be.

    After the timed turns, where there is time, one more is taken under the profiler.
    """
    found: dict[str, Result | str] = {}
    results: dict[str, Result] = {}
    running = {
        way: Contestant(way, shape, None, rounds + 2, wait=False, profile=True) for way in ways
    }
    try:
        for turn in range(-1, rounds + 2):
            if turn == rounds + 1:
                results = {way: one.result() for way, one in running.items()}
            for way, one in list(running.items()):
                try:
                    one.ready() if turn < 0 else one.step()
                except (RuntimeError, OSError) as error:
                    print(f"{way}: {error}", flush=True)
                    found[way] = (str(error).strip().splitlines() or ["no message"])[-1][:300]
                    one.process.kill()
                    del running[way]
            if seconds_left() < 3 and turn > 0:
                break
        for way, result in results.items():
            if way in running:
                kernels.show(shape, way, running[way], result.median)
    finally:
        for one in running.values():
            one.process.kill()
            with contextlib.suppress(OSError):
                one.process.wait(5)
    return {way: results.get(way) or found.get(way) or running[way].result() for way in ways}


def show(shape: Shape, found: dict[str, Result | str], product: float | None) -> None:
    """A line for each way; what is measured on a GPU alone has a dash elsewhere."""
    ours = found.get("prefkit")
    flop = useful_flop(shape)
    length = f"{shape.prefix} + {shape.chosen} | {shape.rejected} tokens"
    for way, got in found.items():
        if isinstance(got, str):
            row(f"{shape.words}: {length}", way=way, note=got)
            continue
        on_gpu = shape.device != "cpu"
        rate = flop / got.median / 1e12
        row(
            f"{shape.words}: {length}",
            way=way,
            **{
                "s a step": round(got.median, 4),
                "least – most": f"{min(got.seconds):.3f} – {max(got.seconds):.3f}",
                "× prefkit": round(got.median / ours.median, 2)
                if isinstance(ours, Result)
                else None,
                "pair tokens": got.tokens,
                "pair tokens/s": round(got.tokens / got.median),
                "read by the policy": got.read,
                "useful TFLOP/s": round(rate, 1) if on_gpu else None,
                "MFU": f"{rate / product:.0%}" if product else None,
                "peak GB": round(got.memory / 1e9, 2) if on_gpu else None,
            },
        )
        tell(steps=got.seconds, way=way, shape=shape.words, memory=got.memory)


def main() -> None:
    where = device()
    product = None if where == "cpu" else product_rate(where, 8192)
    failed = []
    for shape in map(shrunk, SHAPES[:1]) if where == "cpu" else SHAPES:
        found = take_turns(shape, WAYS, 1 if where == "cpu" else ROUNDS)
        show(shape, found, product)
        failed += [f"{way}: {got}" for way, got in found.items() if isinstance(got, str)]
        steps = [got.median for got in found.values() if isinstance(got, Result)]
        print(f"{shape.words}: {median(steps or [0.0]):.3f} s a step", flush=True)
    words = (
        "MFU: useful operations (both rows in full, forward 1, backward 2, reference 1, nothing "
    )
    words += "recomputed) over the time and an 8192³ bf16 product"
    measured = f" measured here at {product:.0f} TFLOP/s" if product else ""
    tell(
        markdown=f"{words}{measured}. Both: bf16 over fp32 weights, fused AdamW, sdpa, "
        "activation checkpointing, the reference in every step, one pair a step."
    )
    if any(not line.startswith("trl: ") or "No module" not in line for line in failed):
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
