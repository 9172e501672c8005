"""Margins that are linear in the per-token quantities.

The loss of a pair is a function of its margin u. As u is linear, its gradient is known before its
value: `prefkit_kernels.pair_scores` makes it while the logits are there. Value and coefficients are
both read from one `Linear`, so that they cannot drift apart.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.loss.sides import Sides


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A margin u that is linear in the per-token quantities, with its coefficients a side.

    u = Σ_sides (ratio·S + kl·K) − shift. The loss reads the value of u from it and, where the
    gradient is made in one pass (`prefkit_kernels.pair_scores`), the coefficients: they are written
    down once.

    Args:
        ratio: (chosen, rejected) coefficients of S = Σ w·r, of S / Σ w if `normalized`.
        kl: those of K = Σ w·KL, or None.
        kl_detached: sides whose KL enters the value of u and not its gradient.
        shift: subtracted from u.
    """

    ratio: tuple[float, float]
    kl: tuple[float, float] | None = None
    kl_detached: tuple[bool, bool] = (False, False)
    normalized: bool = False
    shift: float = 0.0

    def margins(
        self, sides: "Sides", ratio: "Tensor", kl: "Tensor | None", scores: "Tensor | None"
    ) -> "Tensor":
        """(P,) u of each pair, from ratio (T,) and kl (T,).

        With scores (P,), whose gradient is that of u, the gradient goes through them.
        """
        u = self.of_rewards(sides.mean(ratio) if self.normalized else sides.weighted(ratio))
        if self.kl is not None:
            assert kl is not None, "the objective asks for what it uses"
            by_side = sides.weighted(kl).unbind(1)
            for k, factor, detached in zip(by_side, self.kl, self.kl_detached, strict=True):
                u = u + factor * (k.detach() if detached else k)
        return u if scores is None else u.detach() + (scores - scores.detach())

    def of_rewards(self, rewards: "Tensor") -> "Tensor":
        """(P,) u without a KL, from what each side brings (P, 2)."""
        return self.ratio[0] * rewards[:, 0] + self.ratio[1] * rewards[:, 1] - self.shift

    def coefficients(self, sides: "Sides") -> "dict[str, Tensor]":
        """(T,) ∂u/∂logp_t and, with a KL, ∂u/∂KL_t of each token's own pair."""
        by_token = {name: sides.by_token(*pair) for name, pair in self.by_kind().items()}
        if self.normalized:
            by_token["logp"] = by_token["logp"] / sides.totals_by_token()
        return by_token

    def by_kind(self) -> dict[str, tuple[float, float]]:
        """∂u/∂(w·logp_t) and, with a KL, ∂u/∂(w·KL_t) of a (chosen, rejected) token.

        Where `normalized`, w is a token's share of its side's weights.
        """
        if self.kl is None:
            return {"logp": self.ratio}
        chosen, rejected = (
            0.0 if detached else factor
            for factor, detached in zip(self.kl, self.kl_detached, strict=True)
        )
        return {"logp": self.ratio, "kl": (chosen, rejected)}
