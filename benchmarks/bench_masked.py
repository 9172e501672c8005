"""Do masked tokens cost anything?

    python -m pytest benchmarks/bench_masked.py         or
    python -m benchmarks.run --only bench_masked

The same pair with 0, 75 and 95 % of its tokens not scored: prompts, shared steps, tool output.
"""

from collections.abc import Callable
from dataclasses import replace

from benchmarks import bench_loss
from benchmarks.problems import Case
from benchmarks.questions import EVERY, FUSED, Group, Question


def _cases(case: Case) -> tuple[Case, ...]:
    return tuple(replace(case, masked=share) for share in (0.0, 0.75, 0.95))


QUESTION = Question(
    name="bench_masked",
    title="0, 75 and 95 % of the tokens masked",
    cpu=(Group(_cases(bench_loss.SHORT_DPO), ("prefkit", "eager")),),
    long=(Group(_cases(bench_loss.DPO), ("prefkit",)),),
    full=(Group(_cases(bench_loss.DPO), EVERY),),
    gpu=(Group(_cases(bench_loss.QUESTION.gpu[0].cases[0]), FUSED),),
)


def test_masked(replay: Callable[[], None]) -> None:
    replay()
