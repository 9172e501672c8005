"""Who finds the first wrong step, and who removes right answers that were reached by wrong steps.

One interface for the methods of `prefkit.pairs.localise`: program, judge, rollouts, a function of
the user's. Whoever finds is not always who filters: rollouts say nothing of a solution whose answer
is right. Who was asked, and why, is counted for every solution; what was blamed is
kept, so that it can be looked at (`prefkit.pairs.run.verdicts`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prefkit.errors import ConfigError, PrefkitError
from prefkit.files.progress import say
from prefkit.options import import_path
from prefkit.pairs.asking import Asking
from prefkit.pairs.engines.base import Request
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.localise.expression.orders import decided
from prefkit.pairs.localise.expression.question import is_expression
from prefkit.pairs.localise.judge import CUT, judge
from prefkit.pairs.localise.program.locate import locate
from prefkit.pairs.localise.rollouts import first_hopeless
from prefkit.pairs.localise.verdict import Verdict
from prefkit.pairs.pipelines.choosing import LOCALISERS, chosen, gives_judge
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.outcome import LOCALISED, REMOVED, Attempt, Outcome, keep
from prefkit.pairs.questions import Question

# (question, steps, right solution or None) → 0-based first wrong step, or None
Function = Callable[[str, Sequence[str], str | None], int | None]
_WHY_PROGRAM = "the steps of an expression can be followed"


class Finder:
    """Judges the steps of solutions.

    Args:
        localiser: one of `LOCALISERS`, "module:function", or "none" where nobody is asked.
        filter: "auto", "program", "judge", "function" or "none".
        rollouts: continuations a prefix, for the localiser of that name.
        has_judge: a judge of its own is given, which "auto" asks where the program is in doubt.

    Raises:
        ConfigError: a function that cannot be imported or called.
    """

    def __init__(self, localiser: str, filter: str, rollouts: int, has_judge: bool = False) -> None:
        self.localiser, self.filter, self.rollouts = localiser, filter, rollouts
        self.has_judge = has_judge
        named = localiser in (*LOCALISERS, "none")
        self._function = None if named else load_function(localiser)
        self._told = False

    def first_wrong(
        self, question: Question, context: Context, outcome: Outcome, attempt: Attempt
    ) -> Asking[int | None]:
        """The 0-based first wrong step of a wrong solution; None = not found, or none is wrong but
        one is missing at the end."""
        who, why = self._who(self.localiser, "localiser", question, attempt.steps, "rollouts")
        outcome.counts[f"wrong solutions read by {who}: {why}"] += 1
        name = f"locate/{attempt.number}"
        found = yield from self._ask(
            who, self.localiser, question, context, outcome, attempt.steps, name
        )
        if found.step is None or found.step >= len(attempt.steps):
            return None
        keep(outcome, LOCALISED, question, attempt.steps, found, f"{who} ({why})")
        return found.step

    def fault(
        self,
        question: Question,
        context: Context,
        outcome: Outcome,
        steps: Sequence[str],
        name: str,
    ) -> Asking[str | None]:
        """Why a solution with a right answer is left out, for the manifest; None = it is not.

        A judge has to call every step right; the rules of a program have to find nothing.

        Args:
            name: of the solution, unique for the question.
        """
        if self.filter == "none":
            return None
        who, why = self._who(self.filter, "process_filter", question, steps, "nobody")
        outcome.counts[f"right solutions read by {who}: {why}"] += 1
        if who == "nobody":
            return _doubt(question, outcome, steps)
        found = yield from self._ask(
            who, self.filter, question, context, outcome, steps, f"filter/{name}"
        )
        if found.failure:
            return "right answer, and the judge gave no verdict"
        if found.step is None:
            return None
        keep(outcome, REMOVED, question, steps, found, f"{who} ({why})")
        return "right answer by a wrong step"

    def _who(
        self, wanted: str, option: str, question: Question, steps: Sequence[str], last: str
    ) -> tuple[str, str]:
        """Who reads a solution, and why; `last` is who does where neither program nor judge can."""
        if wanted != "auto":
            return wanted, f"{option} {wanted}"
        if decided(question.text, steps) is not None:
            return "program", _WHY_PROGRAM
        return ("judge", "a judge is given") if self.has_judge else (last, "no judge is given")

    def _ask(
        self,
        who: str,
        wanted: str,
        question: Question,
        context: Context,
        outcome: Outcome,
        steps: Sequence[str],
        name: str,
    ) -> Asking[Verdict]:
        if who == "program":
            in_any_order = decided(question.text, steps) if wanted == "auto" else None
            return in_any_order or locate(question.text, list(steps), solution=question.solution)
        if who == "judge":
            found = yield from _by_judge(question, context, steps, name)
            self._count_failure(found, question, context, outcome)
            return found
        if who == "rollouts":
            return (yield from _by_rollouts(question, context, outcome, steps, name, self.rollouts))
        assert self._function is not None
        return Verdict(_checked(self.localiser, self._function, question, steps), self.localiser)

    def _count_failure(
        self, found: Verdict, question: Question, context: Context, outcome: Outcome
    ) -> None:
        """Counts an answer that is no verdict; the first that the limit cut off is told at once,
        for in a build of hours the end is late."""
        if not found.failure:
            return
        outcome.drops[f"judge answers: {found.failure}"] += 1
        if found.failure in CUT and not self._told:
            self._told = True
            say(
                f"{question.source}, row {question.row}: an answer of the judge was {found.failure}"
                f" ({context.options.judge_max_tokens}). Such answers are no verdicts, and are "
                "counted. If they are many, raise judge_max_tokens."
            )


def _doubt(question: Question, outcome: Outcome, steps: Sequence[str]) -> str | None:
    """Why a solution to an expression is left out that nobody could read without a doubt.

    What the program finds wrong by its own order may be right, but the chosen one has to be: a row
    that is lost is the lesser evil.
    """
    if not is_expression(question.text):
        return None
    found = locate(question.text, list(steps), solution=question.solution)
    if found.step is None:
        return None
    keep(outcome, REMOVED, question, steps, found, "program (in doubt)")
    return "right answer, and a step in doubt"


def make_finder(options: BuildFields, method: str) -> Finder:
    """The finder that a build's options ask for.

    Raises:
        ConfigError: a function that cannot be imported or called.
    """
    given = dataclasses.asdict(options)
    localiser, filter = chosen(given, method)
    return Finder(localiser, filter, options.rollouts, gives_judge(given))


def announcement(finder: Finder, options: BuildFields, questions: Iterable[Question]) -> str | None:
    """Who will find the first wrong steps, and what that costs, told before anything is sampled;
    None where nobody is asked."""
    if finder.localiser == "none":
        return None
    texts = [question.text for question in questions]
    expressions = sum(map(is_expression, texts))
    costs = {
        "program": "the program, which costs nothing",
        "judge": "the judge, one request a wrong solution",
        "rollouts": f"rollouts, {finder.rollouts} continuations from before each of its steps",
    }
    who = costs.get(finder.localiser, finder.localiser)
    if finder.localiser == "auto":
        other = costs["judge" if finder.has_judge else "rollouts"]
        who = (
            f"the program where the steps of an expression can be followed ({expressions:,} of "
            f"{len(texts):,} questions are expressions), else {other}"
        )
    text = (
        f"first wrong step (localiser {finder.localiser}), of at most "
        f"{options.mistakes_per_question} wrong solutions a question: {who}."
    )
    if finder.localiser == "program" and expressions < len(texts):
        text += (
            f" {len(texts) - expressions:,} of {len(texts):,} questions are no expressions: there "
            "it finds the very step in about half of the solutions (docs/build_grading.md)."
        )
    return text


def load_function(path: str) -> Function:
    """The function "module:name".

    Raises:
        ConfigError: no such module or function.
    """
    if ":" not in path:
        raise ConfigError(
            f"localiser is {path!r}. Choose one of {', '.join(LOCALISERS)}, or write "
            "module:function."
        )
    return import_path.load_function("localiser", path)


def _checked(path: str, function: Function, question: Question, steps: Sequence[str]) -> int | None:
    try:
        index: Any = function(question.text, list(steps), question.solution)
    except Exception as error:
        raise PrefkitError(
            f"localiser {path} failed on {question.source}, row {question.row}: "
            f"{type(error).__name__}: {error}. It must take (question, steps, solution). Repair it "
            "and give the same command again: what was sampled is kept."
        ) from error
    if index is None or (type(index) is int and 0 <= index < len(steps)):
        return index
    raise ConfigError(
        f"localiser {path} gave {index!r} for a solution of {len(steps)} steps. It must give the "
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
    question: Question,
    context: Context,
    outcome: Outcome,
    steps: Sequence[str],
    name: str,
    count: int,
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
        grades = context.grade(question, whole, Outcome(question.id))  # its counts are of solutions
        outcome.counts["rollouts sampled"] += len(grades)
        outcome.counts["rollouts right"] += sum(grade.correct for grade in grades)
        outcome.counts["rollouts undecided"] += sum(not grade.decided for grade in grades)
        return [grade.correct if grade.decided else None for grade in grades]

    return (yield from first_hopeless(steps, request, succeed, count))
