"""What do several pairs in one call cost against one?

    python -m pytest benchmarks/bench_pairs.py          or
    python -m benchmarks.run --only bench_pairs

The same number of tokens as one pair and as eight: with one pair a trainable head takes one pass,
with several it takes two.
"""

from collections.abc import Callable
from dataclasses import replace

from benchmarks import bench_loss
from benchmarks.problems import Case
from benchmarks.questions import EVERY, FUSED, Group, Question


def _cases(case: Case) -> tuple[Case, ...]:
    return (case, replace(case, pairs=8))


QUESTION = Question(
    name="bench_pairs",
    title="One pair and eight, with the same number of tokens",
    cpu=(
        Group(
            _cases(bench_loss.SHORT_DPO),
            ("prefkit", "two_pass", "gemms", "gemms_two_pass"),
            memory=False,
        ),
    ),
    full=tuple(Group(_cases(case), EVERY) for case in (bench_loss.DPO, bench_loss.TDPO2)),
    gpu=tuple(Group(_cases(group.cases[0]), FUSED) for group in bench_loss.QUESTION.gpu),
)


def test_pairs(replay: Callable[[], None]) -> None:
    replay()
