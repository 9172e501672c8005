"""prefkit: the schedule it picks itself, and each schedule forced.

Like its trainer it is told how many pairs and scored tokens there are, which spares a GPU the
synchronisations of counting them.
"""

from functools import partial
from typing import Any

from benchmarks.problems import Problem
from benchmarks.ways.base import Outcome, Unavailable, Way, objective
from prefkit import fused_preference_loss


def _run(problem: Problem, schedule: str) -> Outcome:
    if schedule == "one_pass" and not problem.case.frozen and problem.case.pairs > 1:
        raise Unavailable("one pass with a trainable head is for one pair")
    if schedule == "keep_dz" and problem.case.frozen:
        raise Unavailable("a frozen head has no gradient that dz would be kept for")
    reference: dict[str, Any] = {"ref_hidden": problem.ref_hidden, "ref_weight": problem.ref_weight}
    if problem.ref_logp is not None:
        reference = {"ref_logp": problem.ref_logp}
    out = fused_preference_loss(
        problem.hidden,
        problem.weight,
        problem.targets,
        problem.segments,
        objective(problem.case),
        schedule=schedule,
        pairs_in_call=problem.case.pairs,
        num_scored=problem.case.scored,
        **reference,
    )
    return Outcome(out.loss, out.stats.logp, out.stats.kl)


OURS = (
    Way("prefkit", "prefkit", partial(_run, schedule="auto")),
    Way("one_pass", "prefkit, one pass forced", partial(_run, schedule="one_pass")),
    Way("keep_dz", "prefkit, dz kept", partial(_run, schedule="keep_dz")),
    Way("two_pass", "prefkit, two passes forced", partial(_run, schedule="two_pass")),
)
