"""`prefkit build step-dpo`: the first wrong step of a solution and a right one instead of it.

Step-DPO's three stages (arXiv 2406.18629, section 3.2): collect solutions with a wrong answer, find
the first wrong step, and sample from the steps before it until the answer comes out right. Kept
are pairs of single steps, together with both continuations to the end. With all pairs the search
goes on in the continuations that came out wrong (`prefkit.pairs.pipelines.step_tree`).
"""

from collections.abc import Sequence

from prefkit.pairs.asking import Asking, together
from prefkit.pairs.pipelines.attempts import distinct, solve
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.mistakes import locate, put_right, right_steps
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from prefkit.pairs.pipelines.rows import Row
from prefkit.pairs.pipelines.step_tree import step_pair, step_tree
from prefkit.pairs.questions import Question


def step_dpo(question: Question, context: Context) -> Asking[Outcome]:
    """Collects, localises, rectifies.

    Returns:
        An outcome of at most mistakes_per_question × pairs_per_mistake rows; with all pairs, of
        as many right steps as there are beside each of the mistakes.
    """
    outcome, options = Outcome(question.id), context.options
    assert options.samples is not None
    attempts = yield from solve(question, context, outcome, range(options.samples))
    wrong = distinct([a for a in attempts if a.decided and not a.right], outcome)
    if not wrong:
        outcome.drops["questions: all right"] += 1
    if options.pairs == "all":
        found = yield from step_tree(question, context, outcome, wrong)
        outcome.rows = _distinct_rows(found, outcome)
        return outcome
    assert options.mistakes_per_question is not None
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
    mistake = yield from locate(question, context, outcome, attempt)
    if mistake is None:
        return []
    continued = yield from put_right(question, context, outcome, mistake)
    found = yield from right_steps(question, context, outcome, mistake, continued)
    if not found:
        outcome.drops["mistakes: never put right"] += 1
    return [
        step_pair(question, mistake, chosen, f"{attempt.number}-{number}")
        for number, chosen in found
    ]


def _distinct_rows(rows: Sequence[Row], outcome: Outcome) -> list[Row]:
    """Two wrong solutions may share prefix and steps: such pairs are kept once."""
    kept: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row["prefix"].strip(), row["chosen"].strip(), row["rejected"].strip())
        if key in kept:
            outcome.drops["pairs: the same as another of the question"] += 1
        kept.setdefault(key, row)
    return list(kept.values())
