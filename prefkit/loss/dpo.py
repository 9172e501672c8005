"""DPO, its relatives and DPO-Positive: losses of log-ratios against a reference.

With r_t = logp_t − ref_logp_t, weights w_t and, per side, S = Σ w·r:

    u = β(S_w − S_l) − margin,     loss = mean over pairs of Σ_k weight_k·link_k(u)

Some losses are functions of both rewards βS rather than of u (`prefkit.loss.reward_losses`). What
each is a function of, `prefkit.loss.loss_types` says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from prefkit.loss.combinations import check_dpo, check_dpop, names_of, settle_names
from prefkit.loss.fields import DPOOptions, DPOPOptions
from prefkit.loss.loss_types import LOSS_TYPES
from prefkit.loss.margins import Linear
from prefkit.loss.objective import Objective
from prefkit.loss.terms import Terms

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.loss.sides import Sides


@dataclass(kw_only=True, unsafe_hash=True)
class DPO(DPOOptions, Objective):
    """Direct preference optimisation (arXiv 2305.18290, eq. 7) on weighted tokens, and relatives.

    The options are documented in `DPOOptions`. `link` and `loss_type` are two names of one option:
    whichever is given, a single loss has its name in both, and several are a tuple in `loss_type`,
    with `link` None; `use_weighting` puts wpo in `pair_weights`. In `dataclasses.replace`, what was
    not given but repeats another option follows it. With `reduction="position"` and `ld_alpha` a
    token of weight 0 keeps its position; a token of segment −1 (masked tool output) has none, and
    shifts those after.

    Raises:
        ConfigError: (a ValueError) an option out of its range, or two that exclude each other.
    """

    unset: ClassVar[Mapping[str, Any]] = {"beta": 0.1, "margin": 0.0}
    synonyms: ClassVar[tuple[str, ...]] = ("link", "use_weighting")

    def settle(self) -> None:
        settle_names(self)

    def check(self) -> None:
        check_dpo(self)

    @property
    def names(self) -> tuple[str, ...]:
        """The losses whose weighted sum this is."""
        return names_of(self)

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free

    @property
    def needs_margins(self) -> bool:
        return self.margin_weight > 0

    @property
    def needs_groups(self) -> bool:
        return "plackett_luce" in self.names

    @property
    def takes_lone_sides(self) -> bool:
        return all(LOSS_TYPES[name].alone for name in self.names)

    @property
    def needs_whole_sides(self) -> str | None:
        if self.reduction == "position":
            return (
                "reduction 'position': it sets token j of the chosen side against token j of the "
                "rejected one, which may lie on different processes; use reduction='sequence'"
            )
        if self.ld_alpha is not None:
            return (
                "ld_alpha: it counts the tokens of whole responses, which may lie on different "
                "processes; leave it out"
            )
        return super().needs_whole_sides

    @property
    def margin_of_pair(self) -> Linear:
        return self.margin_of(self.names[0])

    def margin_of(self, name: str) -> Linear:
        """The margin of which a loss is a function; ipo has its own shift and no β."""
        kind = LOSS_TYPES[name]
        beta = self.beta if kind.takes_margin else 1.0
        return Linear(
            ratio=(beta, -beta),
            normalized=self.length_normalized or kind.normalized,
            shift=self.margin if kind.takes_margin else 0.0,
        )

    @property
    def not_linear(self) -> str | None:
        if self.reduction == "position":
            return "reduction='position' has a margin for every position, not one for a pair"
        if self.nll_weight:
            return "nll_weight adds a term to the loss that is no function of a pair's margin"
        if self._divergence:
            return f"f_divergence_type={self.f_divergence_type!r} makes rewards that are not linear"
        for name in self.names:
            if LOSS_TYPES[name].of != "margin":
                return f"loss_type {name!r} is no function of the difference of two rewards"
        if len({self.margin_of(name) for name in self.names}) > 1:
            return f"the losses {', '.join(self.names)} are functions of different margins"
        return super().not_linear

    def reward_sides(self, sides: "Sides") -> "Sides":
        if self.ld_alpha is None:
            return sides
        import torch

        ones = torch.ones_like(sides.weights)
        return sides.lighter(torch.where(sides.beyond_shorter(), self.ld_alpha, ones))

    def losses(self, terms: Terms) -> "Tensor":
        groups, factors = terms.groups, self.loss_weights or (1.0,) * len(self.names)
        losses: Any = 0.0
        for name, factor in zip(self.names, factors, strict=True):
            losses = losses + factor * self._losses(name, terms)
        if self.nll_weight:
            nll = -terms.sides.mean(terms.logp)[:, 0]
            losses = losses + self.nll_weight * (nll if groups is None else groups.mean(nll))
        return losses

    def _losses(self, name: str, terms: Terms) -> "Tensor":
        """(P,) one of the losses, of each pair or, by their numbers, of each group."""
        from prefkit.loss.reward_losses import batch_loss, reward_loss

        kind, groups = LOSS_TYPES[name].of, terms.groups
        if self.reduction == "position":
            return self._by_position(name, terms)
        if kind == "batch":
            return batch_loss(name, terms, self.beta, self.label_smoothing)
        if kind == "rewards":
            losses = reward_loss(name, terms.reward_sides.weighted(terms.ratio), self.beta)
        elif name == "plackett_luce":
            assert groups is not None, "needs_groups"
            return self._link(name, groups.soft_minimum(self.margins(terms, name)))
        else:
            losses = self._link(name, self.margins(terms, name))
        return losses if groups is None else groups.mean(losses)

    def margins(self, terms: Terms, name: str) -> "Tensor":
        """(P,) u of each pair, for one of the losses."""
        linear, sides = self.margin_of(name), terms.reward_sides
        if self._divergence:
            u = linear.of_rewards(self._diverging(terms, linear.normalized))
        else:
            u = linear.margins(sides, terms.ratio, None, terms.scores)
        if terms.margins is None or not LOSS_TYPES[name].takes_margin:
            return u
        return u - self.margin_weight * terms.margins

    def _diverging(self, terms: Terms, normalized: bool) -> "Tensor":
        """(P, 2) what f makes of S, divided by Σ w where normalised: TRL's order of the two."""
        from prefkit.loss.divergences import divergence_score

        sides = terms.reward_sides
        sums, name = sides.weighted(terms.ratio), self.f_divergence_type
        scores = divergence_score(name, sums, self.f_alpha_divergence_coef)
        return scores / sides.totals.where(sides.totals > 0, 1) if normalized else scores

    @property
    def _divergence(self) -> bool:
        """Whether rewards are no log-ratios."""
        if self.f_divergence_type == "reverse_kl":
            return False
        from prefkit.loss.divergences import is_reverse_kl

        return not is_reverse_kl(self.f_divergence_type, self.f_alpha_divergence_coef)

    def rewards(self, terms: Terms) -> "Tensor":
        if self.length_normalized and self.reference_free:
            return self.beta * terms.reward_sides.mean(terms.ratio)
        return super().rewards(terms)

    def metrics(self, terms: Terms) -> "dict[str, Tensor]":
        if not self.nll_weight:
            return {}
        return {"nll_loss": terms.sides.average(-terms.sides.mean(terms.logp)[:, 0]).detach()}

    def _by_position(self, name: str, terms: Terms) -> "Tensor":
        """(P,) mean over aligned positions of link(β(w·r^w_j − w·r^l_j) − margin)."""
        sides = terms.sides
        table, lengths, active = sides.aligned(sides.weights * terms.ratio)
        u = self.beta * (table[:, 0] - table[:, 1]) - self.margin
        if terms.margins is not None:
            u = u - self.margin_weight * terms.margins[:, None]
        total = (self._link(name, u) * active).sum(1)
        if self.positions_per_pair is None:
            return total / lengths.clamp(min=1)
        silent = (self.positions_per_pair - lengths).clamp(min=0)
        return (total + silent * self._link(name, u.new_zeros(()))) / self.positions_per_pair

    def _link(self, name: str, u: "Tensor") -> "Tensor":
        from prefkit.loss.links import link_loss

        epsilon = self.label_smoothing if LOSS_TYPES[name].smoothing else 0.0
        return link_loss(name, u, self.beta, epsilon, self.discopop_tau)


def SimPO(
    *,
    beta: float = 2.0,
    margin: float = 1.0,
    nll_weight: float = 0.0,
    token_weights: str | Callable[..., Any] | None = None,
    pair_weights: str | Callable[..., Any] | None = None,
) -> DPO:
    """SimPO (arXiv 2405.14734, eq. 6): reference-free, length-normalised, with target margin γ."""
    return DPO(
        beta=beta,
        margin=margin,
        nll_weight=nll_weight,
        token_weights=token_weights,
        pair_weights=pair_weights,
        reference_free=True,
        length_normalized=True,
    )


@dataclass(kw_only=True, unsafe_hash=True)
class DPOP(DPOPOptions, DPO):
    """DPO-Positive (arXiv 2402.13228, eq. 3): u = β(S_w − S_l) − βλ·max(0, −S_w).

    The added term is 0 as long as the chosen response is at least as likely as under the reference.
    β 0.3 and λ 50 are what others run it with; they were not checked against the paper.
    """

    unset: ClassVar[Mapping[str, Any]] = {"beta": 0.3, "margin": 0.0, "penalty": 50.0}

    def check(self) -> None:
        super().check()
        check_dpop(self)

    @property
    def not_linear(self) -> str | None:
        return "the penalty of dpop depends on the chosen side alone"

    def margins(self, terms: Terms, name: str) -> "Tensor":
        sides = terms.reward_sides
        normalized = self.margin_of(name).normalized
        sums = sides.mean(terms.ratio) if normalized else sides.weighted(terms.ratio)
        return super().margins(terms, name) - self.beta * self.penalty * (-sums[:, 0]).clamp(min=0)
