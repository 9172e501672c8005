"""pytest-benchmark over the same measurements: `python -m pytest benchmarks/bench_loss.py`.

pytest-benchmark times all rounds of one test before the next, and the machine drifts in between.
So the group is measured once, its ways in turns, by `benchmarks.measure`; each way's test then
replays the times taken, on a clock that moves by them. `--benchmark-json` and its comparisons work
as ever; memory and errors are in `extra_info`, and our own tables are printed at the end.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.measure import Record, measure
from benchmarks.questions import Question
from benchmarks.table import question_table

_MEASURED: dict[tuple[str, int], list[Record]] = {}
_QUESTIONS: dict[str, Question] = {}


class Clock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every group, case and way of the file's question."""
    if "replay" not in metafunc.fixturenames:
        return
    question: Question = metafunc.module.QUESTION
    size = "gpu" if torch.cuda.is_available() else "cpu"
    found = [
        pytest.param(
            (question, number, case, name),
            id=f"{case.title}: {name}",
            marks=pytest.mark.benchmark(group=f"{question.name}: {case.title}", timer=CLOCK),
        )
        for number, group in enumerate(question.groups(size))
        for case in group.cases
        for name in group.ways
    ]
    metafunc.parametrize("asked", found)


@pytest.fixture
def replay(asked: tuple[Any, ...], benchmark: Any) -> Callable[[], None]:
    """Feeds the times of one way in one case to pytest-benchmark; skips with the way's reason."""
    question, number, case, name = asked

    def feed() -> None:
        records = _measured(question, number)
        record = next(r for r in records if r.way == name and r.case == case)
        benchmark.extra_info.update(memory=record.memory, errors=record.errors)
        if record.note:
            pytest.skip(record.note)
        if record.times:
            times = iter(record.times)

            def step() -> None:
                CLOCK.now += next(times)

            benchmark.pedantic(step, rounds=len(record.times))
        else:
            assert record.errors, "neither timed nor checked"

    return feed


def _measured(question: Question, number: int) -> list[Record]:
    key = question.name, number
    if key not in _MEASURED:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        group = question.groups("gpu" if device == "cuda" else "cpu")[number]
        _QUESTIONS[question.name] = question
        _MEASURED[key] = measure(question, number, group, device, lambda what, share: None)
    return _MEASURED[key]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, question in _QUESTIONS.items():
        records = [r for (owner, _), found in _MEASURED.items() if owner == name for r in found]
        terminalreporter.write_line("\n" + question_table(question, records))
