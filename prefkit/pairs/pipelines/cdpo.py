"""`prefkit build cdpo`: pairs, and what the positive and the negative model learn from.

cDPO (arXiv 2411.19943, section 4.1): of many samples a question, the most frequent right answer
stands for what the model knows, the wrong answers for what it gets wrong. From the first the
positive model is tuned, from the second the negative one; their contrast then weighs every token of
the pairs' rejected sides (`prefkit.critical_tokens.contrast`).
"""

from collections.abc import Sequence

from prefkit.pairs.asking import Asking
from prefkit.pairs.grading.compare.grouping import group_key
from prefkit.pairs.pipelines.attempts import by_right_steps, solve
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from prefkit.pairs.pipelines.rows import whole_row
from prefkit.pairs.questions import Question

POSITIVE, NEGATIVE = "positive", "negative"


def cdpo(question: Question, context: Context) -> Asking[Outcome]:
    """Samples, groups by answer, selects.

    Returns:
        An outcome of at most one row, and `extra` rows {"prompt", "response"} for both models.
    """
    outcome = Outcome(question.id)
    assert context.options.samples is not None
    sampled = yield from solve(question, context, outcome, range(context.options.samples))
    attempts = yield from by_right_steps(question, context, outcome, sampled)
    outcome.drops["solutions: unfinished"] += sum(not attempt.ended for attempt in attempts)
    ended = [attempt for attempt in attempts if attempt.ended]
    right, wrong = [by_answer([a for a in ended if a.right is kind]) for kind in (True, False)]
    if right:
        outcome.extra[POSITIVE] = [_response(question, right[0][0])]
    chosen = half_of(wrong)
    if chosen:
        outcome.extra[NEGATIVE] = [_response(question, group[0]) for group in chosen]
    for name, rows in outcome.extra.items():
        outcome.counts[f"solutions for the {name} model"] += len(rows)
    if right and wrong:
        outcome.rows = [whole_row(question, context, right[0][0], wrong[0][0])]
    else:
        reason = "no wrong solution" if right else "no right solution"
        outcome.drops[f"questions: {reason}"] += 1
    return outcome


def half_of(groups: Sequence[Sequence[Attempt]]) -> list[Sequence[Attempt]]:
    """The most frequent groups, until they hold half of all their solutions."""
    total, covered = sum(map(len, groups)), 0
    kept = []
    for group in groups:
        if 2 * covered >= total:
            break
        kept.append(group)
        covered += len(group)
    return kept


def by_answer(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """Groups of one answer, the largest first, ties in the order of their first sample.

    Args:
        attempts: with answers. 7 and 7.0, 1/2 and \\frac{1}{2} are one answer (`group_key`).
    """
    groups: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault(group_key(attempt.answer or ""), []).append(attempt)
    return sorted(groups.values(), key=len, reverse=True)  # stable


def _response(question: Question, attempt: Attempt) -> dict[str, object]:
    return {"prompt": question.prompt_field, "response": attempt.text}
