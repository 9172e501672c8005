"""How exact is each way with bf16 inputs?

    python -m pytest benchmarks/bench_precision.py      or
    python -m benchmarks.run --only bench_precision

Logits of standard deviation 8 and a KL of 1e-3 a token, the state of a policy early in training:
there a logit rounded to bf16 is off by more than policy and reference differ. Errors are against
fp64 of the same bf16 inputs. "fp32 logits by plain torch" is the best that plain torch does in
fp32; gradients are rounded to bf16 by everyone.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.problems import LOSSES, Case
from benchmarks.questions import EVERY, Group, Question

NEAR: dict[str, Any] = {"logit_std": 8.0, "log_ratio_std": 0.07, "dtype": "bfloat16"}
SMALL: dict[str, Any] = {"tokens": 512, "dim": 256, "vocab": 32_000, **NEAR}
LARGE: dict[str, Any] = {
    "tokens": 4096,
    "dim": 4096,
    "vocab": 128_256,
    "head": "Llama-3-8B",
    **NEAR,
}
# The arithmetic of `eager`, and none.
_OTHERS = ("compiled", "gemms", "gemms_whole", "gemms_two_pass")
WAYS = tuple(name for name in (*EVERY, "plain_fp32") if name not in _OTHERS)

QUESTION = Question(
    name="bench_precision",
    title="bf16 inputs: errors of each way against fp64",
    cpu=tuple(Group((Case(loss=loss, **SMALL),), WAYS, memory=False) for loss in LOSSES),
    full=tuple(Group((Case(loss=loss, **SMALL),), WAYS, memory=False) for loss in LOSSES),
    gpu=tuple(Group((Case(loss=loss, **LARGE),), WAYS, memory=False) for loss in LOSSES),
    rounds=0,
    error_tokens=512,
)


def test_precision(replay: Callable[[], None]) -> None:
    replay()
