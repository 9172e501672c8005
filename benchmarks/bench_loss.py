"""How long does one preference loss take, and how much memory, beside the peers?

    python -m pytest benchmarks/bench_loss.py           or
    python -m benchmarks.run --only bench_loss

Forward + backward from ready hidden states, trainable head, one pair, no gradients beforehand.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.problems import Case
from benchmarks.questions import EVERY, MAIN, Group, Question

SHAPE: dict[str, Any] = {"tokens": 2048, "dim": 1024, "vocab": 32_000}
LLAMA_70B: dict[str, Any] = {"tokens": 16_384, "dim": 8192, "vocab": 128_256, "head": "Llama-3-70B"}
DPO, TDPO2 = Case(loss="dpo", **SHAPE), Case(loss="tdpo2", **SHAPE)
SHORT_DPO, SHORT_TDPO2 = (replace(case, tokens=512) for case in (DPO, TDPO2))

QUESTION = Question(
    name="bench_loss",
    title="One pair, trainable head: time and memory of the loss beside the peers",
    cpu=(Group((SHORT_DPO,), MAIN), Group((SHORT_TDPO2,), MAIN)),
    long=(Group((DPO,), MAIN), Group((TDPO2,), MAIN)),
    full=(Group((DPO,), EVERY), Group((TDPO2,), EVERY)),
    gpu=(
        Group((Case(loss="dpo", dtype="bfloat16", **LLAMA_70B),), EVERY),
        Group((Case(loss="tdpo2", dtype="bfloat16", **LLAMA_70B),), EVERY),
    ),
)


def test_loss(replay: Callable[[], None]) -> None:
    replay()
