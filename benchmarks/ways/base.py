"""What a way is: one implementation of the losses, ours or somebody else's.

Every way gets the same `Problem` and gives the same loss with gradients in `hidden` and `weight`.
Peers that give per-token quantities are finished with prefkit's own objective, so that the loss is
one and the same; what differs, and is measured, is how the quantities come about.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.problems import Case, Problem
from benchmarks.truth import ALPHA, BETA
from prefkit import DPO, TDPO
from prefkit.loss.objective import Objective
from prefkit.loss.sides import Sides
from prefkit_kernels import TokenStats


class Unavailable(Exception):
    """A way cannot do a case here; the message is the reason shown under the table."""


@dataclass(frozen=True)
class Outcome:
    """loss, a scalar with a graph; logp and kl, (N,) detached, where the way tells them."""

    loss: Tensor
    logp: Tensor | None = None
    kl: Tensor | None = None


@dataclass(frozen=True)
class Way:
    """One row of a table.

    Attributes:
        name: for `--way` and the results file.
        label: for tables, with what matters of the settings.
        run: forward of the loss; raises Unavailable before computing anything.
        backward: whether a backward follows (not for bare matrix products).
        compiled: whether the first call at a new shape compiles, and must not be timed.
        prepare: instead of `run`, for a way that needs buffers ready outside of the time taken.
    """

    name: str
    label: str
    run: Callable[[Problem], Outcome] | None = None
    backward: bool = True
    compiled: bool = False
    prepare: Callable[[Problem], Callable[[], None]] | None = None

    def ready(self, problem: Problem) -> Callable[[], Outcome | None]:
        """The step to be timed: forward + backward, gradients left in the problem."""
        if self.prepare is not None:
            return self.prepare(problem)
        assert self.run is not None, "a way runs or prepares"
        return partial(_step, self.run, problem)


def _step(run: Callable[[Problem], Outcome], problem: Problem) -> Outcome:
    outcome = run(problem)
    outcome.loss.backward()
    return Outcome(outcome.loss.detach(), outcome.logp, outcome.kl)


def objective(case: Case) -> Objective:
    """The loss of a case, as prefkit defines it."""
    return DPO(beta=BETA) if case.loss == "dpo" else TDPO(beta=BETA, alpha=ALPHA)


def finish(problem: Problem, logp: Tensor, ref_logp: Tensor, kl: Tensor | None) -> Outcome:
    """The loss from per-token quantities, (N,) each, that a peer has computed."""
    if problem.ref_logp is not None:
        ref_logp = problem.ref_logp
    stats = TokenStats(logp=logp, ref_logp=ref_logp.detach(), kl=kl)
    sides = Sides.of(problem.segments, None, logp, problem.case.pairs)
    loss = objective(problem.case)(stats, problem.segments, sides=sides).loss
    return Outcome(loss, logp.detach(), None if kl is None else kl.detach())


def reference_logp(problem: Problem, compute: Callable[[], Tensor]) -> Tensor:
    """The cached reference log-probs, or else `compute()` without a graph."""
    if problem.ref_logp is not None:
        return problem.ref_logp
    with torch.no_grad():
        return compute()
