"""`prefkit build scdpo`: naive pairs, and continuations that leave a right solution half-way.

Step-controlled DPO (arXiv 2407.00782, section 3.1): from every step of a right solution the model
goes on by itself, hotter every round, until its answer is wrong. Both sides then share exactly the
steps up to there. The paper trains on these together with naive pairs; the rows say which they are.
"""

import random
from collections.abc import Sequence

from prefkit.pairs.asking import Asking
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
    pairs = naive_rows(question, context, outcome, attempts, context.options.pairs_per_question)
    outcome.rows = [{**row, "kind": NAIVE} for row in pairs]
    right = next((a for a in attempts if a.right and len(a.steps) > 1), None)
    if right is None:
        outcome.drops["questions: no right solution of several steps"] += 1
        return outcome
    rows = yield from _go_wrong(question, context, outcome, right)
    outcome.rows += [{**row, "kind": CONTROLLED} for row in rows]
    return outcome


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
) -> Asking[list[Row]]:
    """Continuations of the right solution's prefixes that end in a wrong answer.

    Every round asks for twice as many prefixes as pairs are still wanted. The prefixes are taken in
    an order drawn for the question, so that prefixes of every length occur, not only the shortest.
    """
    indices = list(range(1, len(right.steps)))
    random.Random(f"{context.options.seed}/{question.id}").shuffle(indices)
    rows: list[Row] = []
    for round_number, temperature in enumerate(temperatures(context.options.rising)):
        asked = indices[: 2 * (context.options.wrong_per_question - len(rows))]
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
        for index, prefix, completion, grade in zip(
            asked, prefixes, completions, grades, strict=True
        ):
            if completion.finish == "length" or not completion.text.strip():
                outcome.drops["continuations: unfinished"] += 1
            elif not grade.decided:
                outcome.counts["continuations undecided"] += 1
            elif grade.correct:
                outcome.drops["continuations: still right"] += 1
            else:
                outcome.counts["continuations wrong"] += 1
                indices.remove(index)
                name = f"{right.number}-{index}-{round_number}"
                rows.append(_row(question, context, right, index, name, prefix, completion.text))
        if len(rows) >= context.options.wrong_per_question or not indices:
            break
    most = context.options.wrong_per_question
    outcome.drops["continuations: beyond wrong_per_question"] += max(0, len(rows) - most)
    return rows[:most]


def _row(
    question: Question,
    context: Context,
    right: Attempt,
    index: int,
    name: str,
    prefix: str,
    continuation: str,
) -> Row:
    steps = context.split(prefix + continuation)
    aligned = "".join(steps[:index]) == prefix  # not where it begins with an empty line
    return continuation_row(
        question,
        context,
        name=name,
        prefix_steps=right.steps[:index],
        chosen=right.steps[index:],
        rejected=steps[index:] if aligned else context.split(continuation),
    )
