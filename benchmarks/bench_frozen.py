"""What does a frozen head save, and what does a cached reference save on top?

    python -m pytest benchmarks/bench_frozen.py         or
    python -m benchmarks.run --only bench_frozen

With a frozen head (LoRA, or lm_head kept) there is no dW; with the reference's log-probs computed
before the run, half of the forward products go too.
"""

from collections.abc import Callable
from dataclasses import replace

from benchmarks import bench_loss
from benchmarks.problems import Case
from benchmarks.questions import EVERY, FUSED, Group, Question


def _cases(trainable: Case) -> tuple[Case, ...]:
    frozen = replace(trainable, frozen=True)
    cached = (replace(frozen, cached_ref=True),) if trainable.loss == "dpo" else ()
    return (trainable, frozen, *cached)


LARGE_DPO, LARGE_TDPO2 = (group.cases[0] for group in bench_loss.QUESTION.gpu)

QUESTION = Question(
    name="bench_frozen",
    title="Frozen head against a trainable one, and a cached reference",
    cpu=(Group(_cases(bench_loss.SHORT_DPO), ("prefkit", "gemms")),),
    long=(Group(_cases(bench_loss.DPO), ("prefkit", "gemms")),),
    full=tuple(Group(_cases(case), EVERY) for case in (bench_loss.DPO, bench_loss.TDPO2)),
    gpu=tuple(Group(_cases(case), FUSED) for case in (LARGE_DPO, LARGE_TDPO2)),
)


def test_frozen(replay: Callable[[], None]) -> None:
    replay()
