"""ORPO: a response's odds against another's, and its likelihood, without a reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from prefkit.loss.fields import BetaOptions, HookOptions
from prefkit.loss.margins import Linear
from prefkit.loss.objective import Objective
from prefkit.loss.terms import Terms

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True, unsafe_hash=True)
class ORPO(HookOptions, BetaOptions, Objective):
    """Odds ratio preference optimisation (arXiv 2403.07691, eqs. 4, 6 and 7).

    With m the mean log-probability of a side's tokens and odds = exp(m) / (1 − exp(m)):

        loss = −m_w − β·log σ(log odds_w − log odds_l)

    β is the paper's λ. −m_w is the negative log-likelihood a token of the chosen response given its
    prompt, as in eq. 6. (TRL takes it over prompt and response, as the paper's released code does.)

    Args:
        beta: λ > 0.
        token_weights, pair_weights: see `HookOptions`.
    Raises:
        ConfigError: (a ValueError) an option out of its range.
    """

    unset: ClassVar[Mapping[str, Any]] = {"beta": 0.1}

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def margin_of_pair(self) -> Linear:
        return Linear(ratio=(self.beta, -self.beta), normalized=True)

    @property
    def not_linear(self) -> str | None:
        return "the odds of a response are no linear function of its log-probabilities"

    def losses(self, terms: Terms) -> "Tensor":
        means = terms.sides.mean(terms.logp)
        return -means[:, 0] - self.beta * _log_odds_ratio(means)[1]

    def rewards(self, terms: Terms) -> "Tensor":
        """β·m, as TRL logs them."""
        return self.beta * terms.sides.mean(terms.logp)

    def metrics(self, terms: Terms) -> "dict[str, Tensor]":
        """Under TRL's names: the log-likelihood's part, log σ of the log odds ratio, and that."""
        sides = terms.sides
        means = sides.mean(terms.logp).detach()
        log_odds, log_sigmoid = _log_odds_ratio(means)
        return {
            "nll_loss": sides.average(-means[:, 0]),
            "log_odds_ratio": sides.average(log_sigmoid),
            "log_odds_chosen": sides.average(log_odds),
        }


def _log_odds_ratio(means: "Tensor") -> "tuple[Tensor, Tensor]":
    """(P,) log odds of the chosen over the rejected side, and log σ of it, from means (P, 2)."""
    import torch.nn.functional as F

    log_odds = means - _log1mexp(means)
    ratio = log_odds[:, 0] - log_odds[:, 1]
    return ratio, F.logsigmoid(ratio)


def _log1mexp(x: "Tensor") -> "Tensor":
    """log(1 − eˣ) for x < 0, without cancellation on either side of −log 2.

    A probability that rounds to 1 has the odds of the largest one below it, not infinite ones.
    """
    import math

    import torch

    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near, far = x.clamp(min=-math.log(2)), x.clamp(max=-math.log(2))
    return torch.where(x > -math.log(2), (-near.expm1()).log(), (-far.exp()).log1p())
