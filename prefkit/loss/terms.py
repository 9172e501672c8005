"""What an objective is given, and what it gives back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.loss.groups import Groups
    from prefkit.loss.sides import Sides


class Stats(Protocol):
    """What an objective reads, each (T,) or None (as in `prefkit_kernels.TokenStats`)."""

    @property
    def logp(self) -> "Tensor | None": ...
    @property
    def ref_logp(self) -> "Tensor | None": ...
    @property
    def kl(self) -> "Tensor | None": ...


@dataclass(frozen=True)
class ObjectiveResult:
    """A loss and what to log.

    Attributes:
        loss: scalar, differentiable.
        metrics: detached scalars, means over the pairs of this call, under TRL's names
            (rewards/*, logps/*) plus kl/chosen and kl/rejected (nats a side) where there is a KL.
        logps: (P, 2) log-probabilities of the chosen and the rejected response in nats, plain sums
            over their scored tokens; detached.
        rewards: (P, 2) as the loss sees them; detached.
    """

    loss: "Tensor"
    metrics: "dict[str, Tensor]"
    logps: "Tensor"
    rewards: "Tensor"


@dataclass(frozen=True)
class Terms:
    """The quantities of one call, from which an objective makes its loss.

    Attributes:
        sides: sums over the chosen and the rejected tokens of each pair.
        reward_sides: the same for rewards, in which tokens may weigh less (`ld_alpha`); Σ w of a
            side, the divisor of its mean, is that of `sides`.
        logp: (T,) log-probabilities under the policy.
        ratio: (T,) r_t = logp_t − ref_logp_t, or logp_t without a reference.
        kl: (T,) KL(ref‖policy)_t in nats, or None.
        scores: (P,) margins whose gradient was made in one pass, or None.
        margins: (P,) margins that the rows ask for, or None.
        groups: which pairs share their chosen response, where the loss is one of groups, or None.
        reference_point: () z0 of kto, without gradient, or None.
    """

    sides: "Sides"
    reward_sides: "Sides"
    logp: "Tensor"
    ratio: "Tensor"
    kl: "Tensor | None" = None
    scores: "Tensor | None" = None
    margins: "Tensor | None" = None
    groups: "Groups | None" = None
    reference_point: "Tensor | None" = None
