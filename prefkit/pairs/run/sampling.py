"""The part of a build that needs a model: every question's pipeline, run to its end."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from prefkit.errors import ConfigError, RowError
from prefkit.files.progress import say
from prefkit.pairs.asking import Asking
from prefkit.pairs.code.interpreter import Interpreter, PythonInterpreter
from prefkit.pairs.engines.base import Engine
from prefkit.pairs.fields import EVALUATE, BuildFields
from prefkit.pairs.grading.grader import DEFAULT_FUNCTION, Grader
from prefkit.pairs.pipelines.cdpo import cdpo
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.dpo import dpo
from prefkit.pairs.pipelines.evaluate import evaluate
from prefkit.pairs.pipelines.finding import announcement, make_finder
from prefkit.pairs.pipelines.outcome import Outcome
from prefkit.pairs.pipelines.scdpo import scdpo
from prefkit.pairs.pipelines.step_dpo import step_dpo
from prefkit.pairs.questions import Question, Questions
from prefkit.pairs.run.driver import Driver
from prefkit.pairs.run.engines import open_engines, open_renderer
from prefkit.pairs.run.manifest import Manifest

_PIPELINES: dict[str, Callable[[Question, Context], Asking[Outcome]]] = {
    "dpo": dpo,
    "step-dpo": step_dpo,
    "scdpo": scdpo,
    "cdpo": cdpo,
    EVALUATE: evaluate,
}


def sample(
    method: str,
    options: BuildFields,
    questions: Questions,
    manifest: Manifest,
    stack: ExitStack,
) -> None:
    """All that needs a model: every question's pipeline to its end."""

    grader = stack.enter_context(
        Grader(
            workers=options.grading_workers,
            seconds=options.grading_seconds,
            answer=options.answer,
            function=options.grader or DEFAULT_FUNCTION,
        )
    )
    grader.try_out(questions.items[0].answer)
    renderer = open_renderer(options, questions)
    interpreter = _interpreter(options, questions)
    finder = make_finder(options, method)
    context = Context(options, grader, renderer, finder, interpreter)
    engines = open_engines(options, renderer)
    for engine in {id(engine): engine for engine in engines.values()}.values():
        stack.enter_context(closing(engine))
    manifest.begin(engines["model"].name)
    pipeline = _PIPELINES[method]
    noun = "rows" if options.pairs == "several" else "pairs"
    noun = "solutions" if method == EVALUATE else noun
    skipped = _unreadable(options, questions, context, engines["model"])
    if line := announcement(finder, options, questions):
        say(line)

    def start(question: Question) -> Asking[Outcome]:
        if question.id in skipped:
            return left_out(question)
        return pipeline(question, context)

    try:
        Driver(engines, Path(options.out), start, noun).run(questions.items)
    finally:
        for role, engine in engines.items():
            if role == "model" or engine is not engines["model"]:  # not the same ones twice
                manifest.note(role, engine.notes)


def left_out(question: Question) -> Asking[Outcome]:
    """The pipeline of a question that the model cannot read."""
    outcome = Outcome(question.id)
    outcome.drops["questions: longer than the model reads"] += 1
    yield from ()
    return outcome


def _unreadable(
    options: BuildFields, questions: Questions, context: Context, engine: Engine
) -> set[str]:
    """Questions longer than the model reads, found before anything is sampled.

    Raises:
        RowError: there is one, and `too_long` is "error".
    """
    found = set()
    for question in questions:
        probe = context.request(question, "probe", options.opening, temperature=1.0)
        if engine.fits(probe):
            continue
        found.add(question.id)
        if options.too_long == "error":
            raise RowError(
                question.source,
                question.row,
                "",
                "its question is longer than the model can read",
                "Remove it, take another model, or say too_long: skip.",
            )
    return found


def _interpreter(options: BuildFields, questions: Questions) -> Interpreter | None:
    """Who runs code steps.

    Raises:
        ConfigError: plain prompts, while rows with code are messages, which training puts into a
            chat template: the model would be trained on other texts than it was asked with.
    """
    if options.interpreter == "none":
        return None
    if options.string_prompts == "raw" and any(isinstance(q.prompt, str) for q in questions):
        raise ConfigError(
            "interpreter: python writes rows of messages, which training reads in chat form. Add "
            "--string_prompts chat, so that the questions are put in chat form too."
        )
    return PythonInterpreter()
