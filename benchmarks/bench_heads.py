"""Does it hold for the heads that people train?

    python -m pytest benchmarks/bench_heads.py          or
    python -m benchmarks.run --only bench_heads

SmolLM2 (V 49k, D 576), Qwen (V 152k, D 2048), Llama-3-8B and 70B (V 128k, D 4096 and 8192). On a
CPU the small head beside every peer, and with time the larger ones with few tokens.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.problems import LOSSES, Case
from benchmarks.questions import EVERY, MAIN, Group, Question

SMOLLM2: dict[str, Any] = {"dim": 576, "vocab": 49_152, "head": "SmolLM2"}
QWEN: dict[str, Any] = {"dim": 2048, "vocab": 151_936, "head": "Qwen"}
LLAMA_8B: dict[str, Any] = {"dim": 4096, "vocab": 128_256, "head": "Llama-3-8B"}
LLAMA_70B: dict[str, Any] = {"dim": 8192, "vocab": 128_256, "head": "Llama-3-70B"}

QUESTION = Question(
    name="bench_heads",
    title="Heads of models in use, beside every peer",
    cpu=(Group((Case(loss="dpo", tokens=128, **SMOLLM2),), EVERY, memory=False),),
    full=(
        Group((Case(loss="dpo", tokens=1024, **SMOLLM2),), EVERY),
        Group((Case(loss="tdpo2", tokens=1024, **SMOLLM2),), EVERY),
        Group((Case(loss="dpo", tokens=128, **QWEN),), MAIN),
        Group((Case(loss="dpo", tokens=64, **LLAMA_8B),), MAIN),
    ),
    gpu=tuple(
        Group((Case(loss=loss, tokens=16_384, dtype="bfloat16", **head),), EVERY)
        for head in (SMOLLM2, QWEN, LLAMA_8B, LLAMA_70B)
        for loss in LOSSES
    ),
    error_tokens=128,
)


def test_heads(replay: Callable[[], None]) -> None:
    replay()
