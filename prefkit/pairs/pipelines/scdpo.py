"""`prefkit build scdpo`: naive pairs, and continuations that leave a right solution half-way.

Step-controlled DPO (arXiv 2407.00782, section 3.1): from every step of a right solution the model
goes on by itself, hotter every round, until its answer is wrong. Both sides then share exactly the
steps up to there. The paper trains on these together with naive pairs; the rows say which they are.
With all pairs, what went wrong from a step stands against every right way on from it that is known:
the solution's own rest, continuations that were still right, and other right solutions.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from prefkit.pairs.asking import Asking, together
from prefkit.pairs.pipelines.attempts import ask, by_right_steps, solve
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.dpo import naive_rows
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from prefkit.pairs.pipelines.rows import Row, continuation_row
from prefkit.pairs.questions import Question

NAIVE, CONTROLLED = "naive", "step-controlled"
_ROUNDS_AT_CAP = (
    3  # once the temperature rises no more, a few more tries, then the prefix is given up
)


def scdpo(question: Question, context: Context) -> Asking[Outcome]:
    """Samples until a right and a wrong solution are there, then goes wrong from the right one.

    Returns:
        An outcome with rows of both kinds (field "kind").
    """
    outcome = Outcome(question.id)
    attempts = yield from _until_both(question, context, outcome)
    pairs = naive_rows(question, context, outcome, attempts)
    outcome.rows = [{**row, "kind": NAIVE} for row in pairs]
    right = next((a for a in attempts if a.right and len(a.steps) > 1), None)
    if right is None:
        outcome.drops["questions: no right solution of several steps"] += 1
        return outcome
    wrong, still_right = yield from _go_wrong(question, context, outcome, right)
    ways = [_Way(one.index, "", right.steps[one.index :]) for one in wrong]
    if context.options.pairs == "all":
        ways += _ways_of_solutions(right, attempts, wrong)
        ways += yield from _ways_of_continuations(
            question, context, outcome, right, wrong, still_right
        )
    else:
        outcome.drops["continuations: still right"] += len(still_right)
    outcome.rows += [
        {**row, "kind": CONTROLLED} for row in _rows(question, context, outcome, right, wrong, ways)
    ]
    return outcome


@dataclass(frozen=True)
class _Continuation:
    """What the model wrote after the first `index` steps of a right solution, in a round."""

    index: int
    round: int
    text: str


@dataclass(frozen=True)
class _Way:
    """Right steps after the first `index` ones of a right solution; `name` tells them apart, "" =
    that solution's own."""

    index: int
    name: str
    steps: tuple[str, ...]


def _until_both(question: Question, context: Context, outcome: Outcome) -> Asking[list[Attempt]]:
    """Rounds of `samples`, until one finished solution is right and one wrong, or `max_samples`."""
    options, attempts, asked = context.options, list[Attempt](), 0
    assert options.samples is not None
    while asked < options.max_samples:
        upto = min(asked + options.samples, options.max_samples)
        sampled = yield from solve(question, context, outcome, range(asked, upto))
        attempts += yield from by_right_steps(question, context, outcome, sampled)
        asked = upto
        kinds = {attempt.right for attempt in attempts if attempt.ended}
        if len(kinds) == 2:
            break
    return attempts


def temperatures(rising: Sequence[float]) -> list[float]:
    """First temperature, rise a round, cap → the temperature of every round."""
    first, rise, cap = rising
    rounds = [first]
    while rise > 0 and rounds[-1] + rise < cap - 1e-9:
        rounds.append(round(rounds[-1] + rise, 10))
    last = max(first, cap) if rise > 0 else first
    return rounds + [last] * _ROUNDS_AT_CAP


def _go_wrong(
    question: Question, context: Context, outcome: Outcome, right: Attempt
) -> Asking[tuple[list[_Continuation], list[_Continuation]]]:
    """Continuations of the right solution's prefixes: those that end in a wrong answer, at most one
    from each prefix, and those that are still right.

    Every round asks for twice as many prefixes as wrong ones are still wanted. The prefixes are
    taken in an order drawn for the question, so that prefixes of every length occur, not only the
    shortest.
    """
    indices = list(range(1, len(right.steps)))
    random.Random(f"{context.options.seed}/{question.id}").shuffle(indices)
    wrong, still_right = list[_Continuation](), list[_Continuation]()
    most = context.options.wrong_per_question
    for round_number, temperature in enumerate(temperatures(context.options.rising)):
        asked = indices[: 2 * (most - len(wrong))]
        prefixes = ["".join(right.steps[:index]) for index in asked]
        requests = [
            context.request(
                question,
                f"continue/{right.number}/{round_number}/{index}",
                prefix,
                temperature=temperature,
                top_p=1.0,
            )
            for index, prefix in zip(asked, prefixes, strict=True)
        ]
        completions = yield from ask(context, requests, prefixes)
        texts = [prefix + c.text for prefix, c in zip(prefixes, completions, strict=True)]
        grades = context.grade(question, texts, outcome)
        outcome.counts["continuations sampled"] += len(asked)
        for index, completion, grade in zip(asked, completions, grades, strict=True):
            one = _Continuation(index, round_number, completion.text)
            if completion.finish == "length" or not completion.text.strip():
                outcome.drops["continuations: unfinished"] += 1
            elif not grade.decided:
                outcome.counts["continuations undecided"] += 1
            elif grade.correct:
                still_right.append(one)
            else:
                outcome.counts["continuations wrong"] += 1
                indices.remove(index)
                wrong.append(one)
        if len(wrong) >= most or not indices:
            break
    if context.options.pairs == "all":
        return wrong, still_right
    outcome.drops["continuations: beyond wrong_per_question"] += max(0, len(wrong) - most)
    return wrong[:most], still_right


def _ways_of_solutions(
    right: Attempt, attempts: Sequence[Attempt], wrong: Sequence[_Continuation]
) -> list[_Way]:
    """The rests of other right solutions that begin with the same steps."""
    return [
        _Way(one.index, f"-s{other.number}", other.steps[one.index :])
        for one in wrong
        for other in attempts
        if other.right and other.ended and other.number != right.number
        if other.steps[: one.index] == right.steps[: one.index] and len(other.steps) > one.index
    ]


def _ways_of_continuations(
    question: Question,
    context: Context,
    outcome: Outcome,
    right: Attempt,
    wrong: Sequence[_Continuation],
    still_right: Sequence[_Continuation],
) -> Asking[list[_Way]]:
    """Continuations that were still right, of prefixes from which another one went wrong. Those
    that were reached by a wrong step are left out as whole solutions are."""
    indices = {one.index for one in wrong}
    beside = [one for one in still_right if one.index in indices]
    outcome.drops["continuations: still right, and none wrong after the same steps"] += len(
        still_right
    ) - len(beside)
    faults = yield from together(
        [
            context.finder.fault(
                question,
                context,
                outcome,
                context.split("".join(right.steps[: one.index]) + one.text),
                f"continue/{right.number}/{one.round}/{one.index}",
            )
            for one in beside
        ]
    )
    ways = []
    for one, fault in zip(beside, faults, strict=True):
        if fault is None:
            ways.append(_Way(one.index, f"-c{one.round}", _steps(context, right, one)))
        else:
            outcome.drops[f"continuations: {fault}"] += 1
    return ways


def _rows(
    question: Question,
    context: Context,
    outcome: Outcome,
    right: Attempt,
    wrong: Sequence[_Continuation],
    ways: Sequence[_Way],
) -> list[Row]:
    """Each wrong continuation with each right way, different in text, after the same steps."""
    rows = []
    for one in wrong:
        seen = set[str]()
        for way in ways:
            if way.index != one.index:
                continue
            if (text := "".join(way.steps).strip()) in seen:
                outcome.drops["continuations: the same right text as another"] += 1
                continue
            seen.add(text)
            rows.append(
                continuation_row(
                    question,
                    context,
                    name=f"{right.number}-{one.index}-{one.round}{way.name}",
                    prefix_steps=right.steps[: one.index],
                    chosen=way.steps,
                    rejected=_steps(context, right, one),
                )
            )
    return rows


def _steps(context: Context, right: Attempt, one: _Continuation) -> tuple[str, ...]:
    prefix = "".join(right.steps[: one.index])
    steps = context.split(prefix + one.text)
    aligned = "".join(steps[: one.index]) == prefix  # not where it begins with an empty line
    return steps[one.index :] if aligned else context.split(one.text)
