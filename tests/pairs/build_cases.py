"""Pipelines of builds driven by hand: what a model "writes" is given, everything else is real."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefkit.pairs.asking import Asking
from prefkit.pairs.engines.base import Completion, Request
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.grading.grader import Grader
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.finding import Finder
from prefkit.pairs.pipelines.outcome import Outcome
from prefkit.pairs.questions import Question
from prefkit.pairs.run.options import resolve

MODEL = str(Path(__file__).parents[2] / "prefkit" / "demo" / "assets" / "model")
# (request) → what is written, and how it ends
Writer = Callable[[Request], tuple[str, str]]


def question(text: str = "What is 6 times 7?", answer: str = "42", name: str = "q") -> Question:
    return Question(id=name, prompt=text, answer=answer, solution=None, source="q.jsonl", row=0)


def make_context(
    method: str, grades: Grader, filter: str = "none", finder: Finder | None = None, **options: Any
) -> Context:
    """A context without a model: prompts are raw text; the program localises unless told else."""
    given = BuildFields(questions="q", model=MODEL, out="o", **options)
    return Context(resolve(given, method), grades, None, finder or Finder("program", filter, 1))


def drive(pipeline: Asking[Outcome], write: Writer) -> tuple[Outcome, list[list[Request]]]:
    """Runs a pipeline; returns its outcome and what it asked, round by round."""
    asked: list[list[Request]] = []
    sent: list[Completion] | None = None
    while True:
        try:
            requests = next(pipeline) if sent is None else pipeline.send(sent)
        except StopIteration as stop:
            return stop.value, asked
        asked.append(requests)
        sent = []
        for request in requests:
            text, finish = write(request)
            sent.append(Completion(key=request.key, text=text, finish=finish, tokens=3))  # type: ignore[arg-type]
