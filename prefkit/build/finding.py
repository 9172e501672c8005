"""Who finds the first wrong step, and who removes right answers that were reached by wrong steps.

One interface for the ways of `prefkit.build.localise`: by program, by judge, by rollouts, or by a
function of the user's. Whoever finds is not always who filters: rollouts say nothing of a solution
whose answer is right, so there the program filters.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from prefkit.build.attempts import Attempt
from prefkit.build.context import Context
from prefkit.build.engines.base import Request
from prefkit.build.fields import EVALUATE, BuildFields
from prefkit.build.localise.judge import judge
from prefkit.build.localise.program import locate
from prefkit.build.localise.rollouts import first_hopeless
from prefkit.build.localise.verdict import Verdict
from prefkit.build.pipeline import Asking, Outcome
from prefkit.build.questions import Question
from prefkit.errors import ConfigError, PrefkitError

LOCALISERS = ("program", "judge", "rollouts")
# What "auto" stands for, where the localiser is no judge.
_FILTERS = {"step-dpo": "program", "scdpo": "program"}
# (question, steps, right solution or None) → 0-based first wrong step, or None
Function = Callable[[str, Sequence[str], str | None], int | None]


class Finder:
    """Judges the steps of solutions.

    Args:
        localiser: one of `LOCALISERS`, or "module:function".
        filter: "program", "judge", "function" or "none".
        rollouts: continuations a prefix, for the localiser of that name.

    Raises:
        ConfigError: a function that cannot be imported or called.
    """

    def __init__(self, localiser: str, filter: str, rollouts: int) -> None:
        self.localiser, self.filter, self.rollouts = localiser, filter, rollouts
        self._function = None if localiser in LOCALISERS else load_function(localiser)

    def first_wrong(
        self, question: Question, context: Context, attempt: Attempt
    ) -> Asking[int | None]:
        """The 0-based first wrong step of a wrong solution; None = not found, or none is wrong but
        one is missing at the end."""
        name = f"locate/{attempt.number}"
        found = yield from self._ask(self.localiser, question, context, attempt.steps, name)
        return None if found.step is None or found.step >= len(attempt.steps) else found.step

    def all_right(
        self, question: Question, context: Context, steps: Sequence[str], name: str
    ) -> Asking[bool]:
        """Whether no step of a solution with a right answer is wrong; `name` is unique.

        A judge has to call every step right; the rules of a program have to find nothing.
        """
        if self.filter == "none":
            return True
        found = yield from self._ask(self.filter, question, context, steps, f"filter/{name}")
        return found.all_right if self.filter == "judge" else found.step is None

    def _ask(
        self, who: str, question: Question, context: Context, steps: Sequence[str], name: str
    ) -> Asking[Verdict]:
        if who == "program":
            return locate(question.text, list(steps), solution=question.solution)
        if who == "judge":
            return (yield from _by_judge(question, context, steps, name))
        if who == "rollouts":
            return (yield from _by_rollouts(question, context, steps, name, self.rollouts))
        assert self._function is not None
        return Verdict(_checked(self.localiser, self._function, question, steps), self.localiser)


def make_finder(options: BuildFields, method: str) -> Finder:
    """The finder that a build's options ask for.

    Raises:
        ConfigError: a function that cannot be imported or called.
    """
    chosen = options.process_filter
    if chosen == "auto":
        chosen = _FILTERS.get(method, "none")  # type: ignore[assignment]
        if method == "step-dpo" and options.localiser not in ("program", "rollouts"):
            chosen = "judge" if options.localiser == "judge" else "function"  # type: ignore
    if method == EVALUATE:
        chosen = "none"
    localiser = options.localiser if method == "step-dpo" else "program"
    return Finder(localiser, chosen, options.rollouts)


def load_function(path: str) -> Function:
    """The function "module:name".

    Raises:
        ConfigError: no such module or function.
    """
    module, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(
            f"localiser is {path!r}. Choose one of {', '.join(LOCALISERS)}, or write "
            "module:function."
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"localiser {path!r} cannot be imported ({error}).") from error
    if not callable(function):
        raise ConfigError(f"localiser {path!r} is no function.")
    return function


def _checked(path: str, function: Function, question: Question, steps: Sequence[str]) -> int | None:
    try:
        place: Any = function(question.text, list(steps), question.solution)
    except Exception as error:
        raise PrefkitError(
            f"localiser {path} failed on {question.source}, row {question.row}: "
            f"{type(error).__name__}: {error}. It must take (question, steps, solution). Repair it "
            "and give the same command again: what was sampled is kept."
        ) from error
    if place is None or (type(place) is int and 0 <= place < len(steps)):
        return place
    raise ConfigError(
        f"localiser {path} gave {place!r} for a solution of {len(steps)} steps. It must give the "
        "0-based first wrong step, or None."
    )


def _by_judge(
    question: Question, context: Context, steps: Sequence[str], name: str
) -> Asking[Verdict]:
    """One question to the judge, greedily; it is told a right solution, or at least the answer."""
    known = question.solution or f"The answer is {question.answer}."
    return (
        yield from judge(
            question.text, known, steps, lambda text: context.judge_request(question, name, text)
        )
    )


def _by_rollouts(
    question: Question, context: Context, steps: Sequence[str], name: str, count: int
) -> Asking[Verdict]:
    options = context.options

    def request(prefix: list[str], number: int) -> Request:
        return context.request(
            question,
            f"{name}/{len(prefix)}/{number}",
            "".join(prefix) or options.opening,
            temperature=options.temperature[number % len(options.temperature)],  # type: ignore
        )

    def succeed(texts: list[str]) -> list[bool | None]:
        # a continuation of no step at all was asked for after the opening
        whole = [t if t.startswith(options.opening) else options.opening + t for t in texts]
        grades = context.grade(question, whole, Outcome(question.id))
        return [grade.correct if grade.decided else None for grade in grades]

    return (yield from first_hopeless(steps, request, succeed, count))
