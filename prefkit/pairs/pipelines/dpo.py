"""`prefkit build dpo`: a right and a wrong whole solution of the same question (arXiv 2305.18290).

With the model's own solutions on both sides these are also SCDPO's naive pairs and what TDPO
(arXiv 2404.11999) trains on: the data is the same, the loss differs.
"""

from collections.abc import Sequence
from typing import Any

from prefkit.pairs.asking import Asking
from prefkit.pairs.pipelines.attempts import by_right_steps, distinct, solve
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from prefkit.pairs.pipelines.rows import row_of_several, whole_row
from prefkit.pairs.questions import Question


def dpo(question: Question, context: Context) -> Asking[Outcome]:
    """Samples solutions and pairs right ones with wrong ones, as the option `pairs` says.

    Returns:
        An outcome of at most `pairs_per_question` rows; one a right solution with pairs "several".
    """
    outcome = Outcome(question.id)
    assert context.options.samples is not None
    sampled = yield from solve(question, context, outcome, range(context.options.samples))
    attempts = yield from by_right_steps(question, context, outcome, sampled)
    outcome.rows = naive_rows(question, context, outcome, attempts)
    return outcome


def naive_rows(
    question: Question,
    context: Context,
    outcome: Outcome,
    attempts: Sequence[Attempt],
) -> list[dict[str, Any]]:
    """Rows of the first right with the first wrong solution, the second with the second, …; then,
    with all pairs, of each with the next, and so on.

    Unfinished solutions are left out: taught as endings, they would teach to break off.
    """
    finished = distinct([attempt for attempt in attempts if attempt.ended], outcome)
    outcome.drops["solutions: unfinished"] += sum(not attempt.ended for attempt in attempts)
    right = [attempt for attempt in finished if attempt.right]
    wrong = [attempt for attempt in finished if not attempt.right]
    if not right or not wrong:
        reason = "no solution ended" if not finished else "all wrong" if wrong else "all right"
        outcome.drops[f"questions: {reason}"] += 1
        return []
    if context.options.pairs == "several":
        return [row_of_several(question, context, good, wrong) for good in right]
    pairs = list(zip(right, wrong, strict=False))
    if context.options.pairs == "all":
        pairs = [
            (good, wrong[(place + turn) % len(wrong)])
            for turn in range(len(wrong))
            for place, good in enumerate(right)
        ]
    kept = pairs[: context.options.pairs_per_question]
    if context.options.pairs == "all":
        outcome.drops["pairs: beyond pairs_per_question"] += len(pairs) - len(kept)
    else:
        outcome.drops["solutions: without a partner, or beyond pairs_per_question"] += len(
            finished
        ) - 2 * len(kept)
    return [whole_row(question, context, good, bad) for good, bad in kept]
