"""`prefkit build step-dpo`: the first wrong step of a solution and a right one instead of it.

Step-DPO's three stages (arXiv 2406.18629, section 3.2): collect solutions with a wrong answer, find
the first wrong step, and sample from the steps before it until the answer comes out right. Kept
are pairs of single steps, together with both continuations to the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.pairs.asking import Asking, together
from prefkit.pairs.pipelines.attempts import distinct, solve
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from prefkit.pairs.pipelines.rows import Row, step_row
from prefkit.pairs.questions import Question
from prefkit.pairs.steps import label_of


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
    rejected: tuple[str, ...]


def step_dpo(question: Question, context: Context) -> Asking[Outcome]:
    """Collects, localises, rectifies.

    Returns:
        An outcome of at most mistakes_per_question × pairs_per_mistake rows.
    """
    outcome, options = Outcome(question.id), context.options
    assert options.samples is not None
    attempts = yield from solve(question, context, outcome, range(options.samples))
    wrong = distinct([a for a in attempts if a.decided and not a.right], outcome)
    if not wrong:
        outcome.drops["questions: all right"] += 1
    outcome.drops["mistakes: beyond mistakes_per_question"] += max(
        0, len(wrong) - options.mistakes_per_question
    )
    followed = wrong[: options.mistakes_per_question]
    rows = yield from together(
        [_follow(question, context, outcome, attempt) for attempt in followed]
    )
    outcome.rows = _distinct_rows([row for some in rows for row in some], outcome)
    return outcome


def _follow(
    question: Question, context: Context, outcome: Outcome, attempt: Attempt
) -> Asking[list[Row]]:
    """From one wrong solution to its pairs."""
    index = yield from context.finder.first_wrong(question, context, outcome, attempt)
    if index is None:
        outcome.drops["mistakes: first wrong step not found"] += 1
        return []
    if not attempt.ended and index == len(attempt.steps) - 1:
        outcome.drops["mistakes: the wrong step is cut off by max_tokens"] += 1
        return []
    outcome.counts["mistakes located"] += 1
    mistake = cut_at(attempt, index, context)
    rows = yield from _rectify(question, context, outcome, mistake)
    if not rows:
        outcome.drops["mistakes: never put right"] += 1
    return rows


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


def _rectify(
    question: Question, context: Context, outcome: Outcome, mistake: Mistake
) -> Asking[list[Row]]:
    """Samples on from before the wrong step; keeps right steps of solutions that come out right."""
    options, attempt = context.options, mistake.attempt
    completions = yield [
        context.request(
            question,
            f"rectify/{attempt.number}/{number}",
            mistake.prefix,
            temperature=options.temperature[number % len(options.temperature)],  # type: ignore
        )
        for number in range(options.rectifications)
    ]
    texts = [mistake.prefix + completion.text for completion in completions]
    grades = context.grade(question, texts, outcome)
    outcome.counts["rectifications sampled"] += len(texts)
    seen, rows = {mistake.rejected[0].strip()}, list[Row]()
    for number, (text, completion, grade) in enumerate(
        zip(texts, completions, grades, strict=True)
    ):
        kind = "unfinished" if completion.finish == "length" else "wrong"
        if not grade.correct or kind == "unfinished":
            outcome.counts[f"rectifications {kind if grade.decided else 'undecided'}"] += 1
            continue
        outcome.counts["rectifications right"] += 1
        chosen = _steps_after(mistake, text, context)
        name = f"rectify/{attempt.number}/{number}"
        if chosen is None:
            outcome.drops["rectifications: their steps do not line up"] += 1
        elif chosen[0].strip() in seen:
            outcome.drops["rectifications: a step seen before"] += 1
        elif len(rows) == options.pairs_per_mistake:
            outcome.drops["rectifications: beyond pairs_per_mistake"] += 1
        elif fault := (
            yield from context.finder.fault(question, context, outcome, context.split(text), name)
        ):  # the same step may yet come before right ones
            outcome.drops[f"rectifications: {fault}"] += 1
        else:
            seen.add(chosen[0].strip())
            rows.append(_row(question, mistake, chosen, number))
    return rows


def _steps_after(mistake: Mistake, text: str, context: Context) -> tuple[str, ...] | None:
    """The steps that follow the mistake's prefix, the first without label; None = misaligned."""
    steps = context.split(text)
    before = "".join(steps[: mistake.index])
    if len(steps) <= mistake.index or before != "".join(mistake.attempt.steps[: mistake.index]):
        return None
    end = len(before) + len(steps[mistake.index])
    first = text[len(mistake.prefix) : end]
    return (first, *steps[mistake.index + 1 :]) if first.strip() else None


def _row(question: Question, mistake: Mistake, chosen: tuple[str, ...], number: int) -> Row:
    return step_row(
        question,
        name=f"{mistake.attempt.number}-{number}",
        prefix=mistake.prefix,
        prefix_steps=mistake.attempt.steps[: mistake.index],
        chosen=chosen,
        rejected=mistake.rejected,
    )


def _distinct_rows(rows: Sequence[Row], outcome: Outcome) -> list[Row]:
    """Two wrong solutions may share prefix and steps: such pairs are kept once."""
    kept: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row["prefix"].strip(), row["chosen"].strip(), row["rejected"].strip())
        if key in kept:
            outcome.drops["pairs: the same as another of the question"] += 1
        kept.setdefault(key, row)
    return list(kept.values())
