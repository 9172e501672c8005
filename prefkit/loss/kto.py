"""KTO: responses that are good or bad by themselves, without another beside them.

A response is one side of a pair: the chosen one where it is desirable, the rejected one where it is
not; the other side may be absent. With S = Σ w·r of a response and the reference point z0 ≥ 0, an
estimate of KL(policy‖reference) without gradient:

    desirable: w_d·(1 − σ(β(S − z0)))        undesirable: w_u·(1 − σ(β(z0 − S)))

and the loss is the mean over responses. z0 is the mean of S over mismatched responses: those of
other prompts (`prefkit.data.mismatched`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefkit.loss.fields import KTOOptions
from prefkit.loss.margins import Linear
from prefkit.loss.objective import Objective
from prefkit.loss.terms import Terms

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True, unsafe_hash=True)
class KTO(KTOOptions, Objective):
    """Kahneman–Tversky optimisation (arXiv 2402.01306, eqs. 7 and 8).

    The options are documented in `KTOOptions`. With `reference_point=False` z0 is 0, which is the
    unpaired form of APO-zero (arXiv 2408.06266, eq. 7; TRL's apo_zero_unpaired).

    Raises:
        ConfigError: (a ValueError) an option out of its range.
    """

    unset: ClassVar[Mapping[str, Any]] = {"beta": 0.1}

    @property
    def needs_reference_point(self) -> bool:
        return self.reference_point

    @property
    def takes_lone_sides(self) -> bool:
        return True

    @property
    def mean_over(self) -> Literal["pairs", "groups", "sides"]:
        return "sides"

    @property
    def margin_of_pair(self) -> Linear:
        return Linear(ratio=(self.beta, -self.beta))

    @property
    def not_linear(self) -> str | None:
        return "kto has a loss for each response, not for the difference of two"

    def losses(self, terms: Terms) -> "Tensor":
        """(P, 2) the loss of each response."""
        import torch

        # 1 − σ(x) = σ(−x)
        sums, point = terms.sides.weighted(terms.ratio), terms.reference_point
        above = self.beta * (sums if point is None else sums - point)
        desirable = self.desirable_weight * torch.sigmoid(-above[:, 0])
        undesirable = self.undesirable_weight * torch.sigmoid(above[:, 1])
        return torch.stack([desirable, undesirable], 1)

    def metrics(self, terms: Terms) -> "dict[str, Tensor]":
        """Means over the responses that there are, 0 where a call has none; kl is z0.

        rewards/margins is the difference of the two means, as TRL has it; rewards/accuracies is of
        the pairs that have both responses.
        """
        there = (terms.sides.tokens > 0).to(terms.logp.dtype)
        rewards, logps = self.rewards(terms).detach(), terms.sides.sum(terms.logp.detach())

        def mean(values: "Tensor", counts: "Tensor") -> "Tensor":
            return (values * counts).sum(0) / counts.sum(0).clamp(min=1)

        chosen, rejected = mean(rewards, there).unbind()
        right = (rewards[:, 0] > rewards[:, 1]).to(there.dtype)
        of_logps = mean(logps, there)
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": mean(right, there.prod(1)),
            "logps/chosen": of_logps[0],
            "logps/rejected": of_logps[1],
            **({} if terms.reference_point is None else {"kl": terms.reference_point}),
        }
