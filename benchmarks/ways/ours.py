"""prefkit: the passes it chooses itself, and each choice forced.

Like its trainer it is told how many pairs and scored tokens there are, which spares a GPU the
synchronisations of counting them.
"""

from functools import partial
from typing import Any

from benchmarks.problems import Problem
from benchmarks.ways.base import Outcome, Unavailable, Way, objective
from prefkit import fused_preference_loss


def run(problem: Problem, passes: str = "auto", memory_budget: int | None = None) -> Outcome:
    """The forward of a case's loss.

    Raises:
        Unavailable: the case cannot be computed in those passes.
    """
    if passes == "one_pass" and not problem.case.frozen and problem.case.pairs > 1:
        raise Unavailable("one pass with a trainable head is for one pair")
    if passes == "keep_dz" and problem.case.frozen:
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
        passes=passes,
        memory_budget=memory_budget,
        pairs_in_call=problem.case.pairs,
        num_scored=problem.case.scored,
        **reference,
    )
    return Outcome(out.loss, out.stats.logp, out.stats.kl)


OURS = (
    Way("prefkit", "prefkit", partial(run, passes="auto")),
    Way("one_pass", "prefkit, one pass forced", partial(run, passes="one_pass")),
    Way("keep_dz", "prefkit, dz kept", partial(run, passes="keep_dz")),
    Way("two_pass", "prefkit, two passes forced", partial(run, passes="two_pass")),
)
