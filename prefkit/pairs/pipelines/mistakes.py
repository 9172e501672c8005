"""One mistake of Step-DPO: located in a wrong solution, and put right from before it."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.pairs.asking import Asking
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from prefkit.pairs.questions import Question
from prefkit.pairs.steps import label_of

Steps = tuple[str, ...]


@dataclass(frozen=True)
class Mistake:
    """A wrong solution cut at its first wrong step.

    Attributes:
        attempt: the solution.
        index: 0-based first wrong step.
        prefix: all text before it, its label included ("Step 3:").
        rejected: the steps from there on, the first without its label.
    """

    attempt: Attempt
    index: int
    prefix: str
    rejected: Steps


def locate(
    question: Question, context: Context, outcome: Outcome, attempt: Attempt
) -> Asking[Mistake | None]:
    """The mistake of a wrong solution; None where it was not found, or is itself cut off."""
    index = yield from context.finder.first_wrong(question, context, outcome, attempt)
    if index is None:
        outcome.drops["mistakes: first wrong step not found"] += 1
        return None
    if not attempt.ended and index == len(attempt.steps) - 1:
        outcome.drops["mistakes: the wrong step is cut off by max_tokens"] += 1
        return None
    outcome.counts["mistakes located"] += 1
    return cut_at(attempt, index, context)


def cut_at(attempt: Attempt, index: int, context: Context) -> Mistake:
    """The mistake with its prefix; the build's opening always belongs to the prefix."""
    before = "".join(attempt.steps[:index])
    before += label_of(attempt.steps[index], context.options.steps)
    opening = context.options.opening
    if len(before) < len(opening):
        before = opening
    end = len("".join(attempt.steps[: index + 1]))
    rejected = (attempt.text[len(before) : end], *attempt.steps[index + 1 :])
    return Mistake(attempt, index, before, rejected)


def put_right(
    question: Question, context: Context, outcome: Outcome, mistake: Mistake
) -> Asking[list[Attempt]]:
    """`rectifications` continuations of what precedes the wrong step, as graded whole solutions."""
    options, name = context.options, mistake.attempt.number
    completions = yield [
        context.request(
            question,
            f"rectify/{name}/{number}",
            mistake.prefix,
            temperature=options.temperature[number % len(options.temperature)],  # type: ignore
        )
        for number in range(options.rectifications)
    ]
    texts = [mistake.prefix + completion.text for completion in completions]
    grades = context.grade(question, texts, outcome)
    outcome.counts["rectifications sampled"] += len(texts)
    continued = []
    for number, (text, completion, grade) in enumerate(
        zip(texts, completions, grades, strict=True)
    ):
        ended = completion.finish != "length"
        right = grade.correct and ended
        kind = "right" if right else "unfinished" if not ended else "wrong"
        known = right or grade.decided
        outcome.counts[f"rectifications {kind if known else 'undecided'}"] += 1
        steps, decided = context.split(text), grade.decided and right is grade.correct
        continued.append(
            Attempt(f"{name}.{number}", text, steps, right, grade.answer, ended, decided)
        )
    return continued


def right_steps(
    question: Question,
    context: Context,
    outcome: Outcome,
    mistake: Mistake,
    continued: Sequence[Attempt],
) -> Asking[list[tuple[int, Steps]]]:
    """Number of the continuation, and the steps that follow the prefix, of those that came out
    right: at most `pairs_per_mistake`, whose first steps differ from each other and the wrong one.
    """
    seen, found = {mistake.rejected[0].strip()}, list[tuple[int, Steps]]()
    for number, one in enumerate(continued):
        if not one.right:
            continue
        steps = steps_after(mistake, one)
        name = f"rectify/{mistake.attempt.number}/{number}"
        if steps is None:
            outcome.drops["rectifications: their steps do not line up"] += 1
        elif steps[0].strip() in seen:
            outcome.drops["rectifications: a step seen before"] += 1
        elif len(found) == context.options.pairs_per_mistake:
            outcome.drops["rectifications: beyond pairs_per_mistake"] += 1
        elif fault := (
            yield from context.finder.fault(question, context, outcome, one.steps, name)
        ):  # the same step may yet come before right ones
            outcome.drops[f"rectifications: {fault}"] += 1
        else:
            seen.add(steps[0].strip())
            found.append((number, steps))
    return found


def steps_after(mistake: Mistake, one: Attempt) -> Steps | None:
    """The steps of a continuation that follow the mistake's prefix, the first without label; None =
    misaligned."""
    before = "".join(one.steps[: mistake.index])
    wrong = mistake.attempt.steps[: mistake.index]
    if len(one.steps) <= mistake.index or before != "".join(wrong):
        return None
    end = len(before) + len(one.steps[mistake.index])
    first = one.text[len(mistake.prefix) : end]
    return (first, *one.steps[mistake.index + 1 :]) if first.strip() else None
