"""The first stage of every build: sample whole solutions and grade them."""

from collections.abc import Sequence

from prefkit.pairs.asking import Asking, together
from prefkit.pairs.engines.base import Completion, Request
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from prefkit.pairs.questions import Question


def solve(
    question: Question, context: Context, outcome: Outcome, numbers: Sequence[int]
) -> Asking[list[Attempt]]:
    """Samples whole solutions and grades them; exact repetitions are left out.

    Args:
        outcome: counts go here.
        numbers: of the samples, unique in the build.
    """
    opening, temperatures = context.options.opening, context.options.temperature
    assert isinstance(temperatures, list)
    requests = [
        context.request(
            question, f"solution/{i}", opening, temperature=temperatures[i % len(temperatures)]
        )
        for i in numbers
    ]
    completions = yield from ask(context, requests, [opening] * len(requests))
    return graded(question, context, outcome, numbers, completions)


def ask(
    context: Context, requests: Sequence[Request], prefixes: Sequence[str]
) -> Asking[list[Completion]]:
    """Completions of requests; with an interpreter, code is run as it comes.

    Args:
        prefixes: what each request's text already holds of the solution.
    """
    if context.interpreter is None:
        return (yield list(requests))
    from prefkit.pairs.code.tools import continue_with_tools

    interpreter = context.interpreter
    return (
        yield from together(
            [
                continue_with_tools(request, interpreter, prefix=prefix)
                for request, prefix in zip(requests, prefixes, strict=True)
            ]
        )
    )


def graded(
    question: Question,
    context: Context,
    outcome: Outcome,
    numbers: Sequence[int],
    completions: Sequence[Completion],
) -> list[Attempt]:
    """Completions of the opening as graded solutions, counted."""
    texts = [context.options.opening + completion.text for completion in completions]
    grades = context.grade(question, texts, outcome)
    attempts = []
    for number, text, completion, grade in zip(numbers, texts, completions, grades, strict=True):
        ended = completion.finish != "length"
        right = grade.correct and ended
        kind = "right" if right else "unfinished" if not ended else "wrong"
        outcome.counts["solutions sampled"] += 1
        outcome.counts[f"solutions {kind if grade.decided else 'undecided'}"] += 1
        steps, decided = context.split(text), grade.decided and right is grade.correct
        attempts.append(Attempt(number, text, steps, right, grade.answer, ended, decided))
    return attempts


def distinct(attempts: Sequence[Attempt], outcome: Outcome) -> list[Attempt]:
    """The first of every text, in order; the others are counted."""
    kept: dict[str, Attempt] = {}
    for attempt in attempts:
        kept.setdefault(attempt.text.strip(), attempt)
    outcome.drops["solutions: the same text as another"] += len(attempts) - len(kept)
    return list(kept.values())


def by_right_steps(
    question: Question, context: Context, outcome: Outcome, attempts: Sequence[Attempt]
) -> Asking[list[Attempt]]:
    """Leaves out solutions whose answer could not be compared, and, if the build filters them,
    right answers that were reached by a wrong step. Both are counted."""
    attempts = [attempt for attempt in attempts if attempt.decided]
    if context.finder.filter == "none":
        return attempts
    faults = yield from together(
        [
            context.finder.fault(question, context, outcome, a.steps, f"solution/{a.number}")
            for a in attempts
            if a.right
        ]
    )
    kept, remaining = [], iter(faults)
    for attempt in attempts:
        fault = next(remaining) if attempt.right else None
        if fault is None:
            kept.append(attempt)
        else:
            outcome.drops[f"solutions: {fault}"] += 1
    return kept
