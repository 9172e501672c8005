"""Token-level DPO: a log-ratio, and a KL over the whole vocabulary at every token.

With S = Σ w·r and K = Σ w·KL(ref‖policy) of each side:

    u = β(S_w − S_l) − κ_l·K_l + κ_w·K_w,     loss = −log σ(u)

TDPO1 has κ_l = κ_w = β; TDPO2 κ = αβ with K_w detached.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefkit.loss.fields import TDPOOptions
from prefkit.loss.margins import Linear
from prefkit.loss.objective import Objective
from prefkit.loss.terms import Terms

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True, unsafe_hash=True)
class TDPO(TDPOOptions, Objective):
    """Token-level DPO with full-vocabulary KL (arXiv 2404.11999, eqs. 15–18).

    u = β(R_w − R_l) − κ(K_l − K_w), loss = −log σ(u), K = Σ_t w_t·KL(ref‖policy)_t.

    Args:
        beta: β > 0.
        alpha: α, weight of the KL term of TDPO2; not used by TDPO1.
        variant: "tdpo2": κ = αβ and no gradient through K_w; "tdpo1": κ = β, gradient through
            both. (The released yaml trains TDPO1 under the name of TDPO2.)
    Raises:
        ConfigError: (a ValueError) an option out of its range.
    """

    variant: Literal["tdpo1", "tdpo2"] = "tdpo2"
    unset: ClassVar[Mapping[str, Any]] = {"beta": 0.1, "alpha": 0.5}
    needs_kl: ClassVar[bool] = True

    @property
    def margin_of_pair(self) -> Linear:
        first = self.variant == "tdpo1"
        kappa = self.beta if first else self.alpha * self.beta
        return Linear(
            ratio=(self.beta, -self.beta), kl=(kappa, -kappa), kl_detached=(not first, False)
        )

    def losses(self, terms: Terms) -> "Tensor":
        from prefkit.loss.links import link_loss

        u = self.margin_of_pair.margins(terms.sides, terms.ratio, terms.kl, terms.scores)
        return link_loss("sigmoid", u)

    def rewards(self, terms: Terms) -> "Tensor":
        """β(R + K), as in the paper."""
        assert terms.kl is not None, "needs_kl"
        return super().rewards(terms) + self.beta * terms.sides.weighted(terms.kl)

    def metrics(self, terms: Terms) -> "dict[str, Tensor]":
        """Plain sums of the KL over the tokens of each side."""
        sides, kl = terms.sides, terms.kl
        assert kl is not None, "needs_kl"
        sums = sides.sum(kl.where(sides.bucket < 2 * sides.count, 0)).detach()
        return {
            "kl/chosen": sides.average(sums[:, 0]),
            "kl/rejected": sides.average(sums[:, 1]),
        }
