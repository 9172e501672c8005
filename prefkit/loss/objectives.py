"""The losses, each defined once, on per-token quantities; and the methods that are made of them.

With r_t = logp_t − ref_logp_t, weights w_t and, per side, S = Σ w·r and K = Σ w·KL(ref‖policy):

    u = β(S_w − S_l) − κ_l·K_l + κ_w·K_w − margin,     loss = mean over pairs of link(u)

DPO has κ = 0; TDPO1 κ_l = κ_w = β; TDPO2 κ = αβ with K_w detached. Step-DPO, SCDPO and cDPO are
DPO with other segments and weights: one step, everything after the shared prefix, 1 − s on the
rejected tokens.

A class `…Options` holds an objective's options, for the objective itself and for the options of a
training run, which has all of them: an option is written down once, here.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefkit.errors import ConfigError
from prefkit.loss.margins import Linear
from prefkit.loss.objective import Objective, Terms
from prefkit.options.check import no_effect
from prefkit.options.option import option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True)
class BetaOptions:
    """What every objective has."""

    # -- method ---------------------------------------------------------------------------------
    beta: float = option(None, above=0)
    """β, strength of the pull towards the reference; None = the method's own (docs/options.md)."""


@dataclass(kw_only=True)
class DPOOptions(BetaOptions):
    """Options of `DPO`."""

    # -- method ---------------------------------------------------------------------------------
    link: Literal["sigmoid", "robust", "hinge", "ipo", "plackett_luce"] = option("sigmoid")
    """How the margin becomes a loss: sigmoid (DPO), robust (2403.00409), hinge (SLiC, 2305.10425),
    ipo (on token means, 2310.12036) or plackett_luce (a row's chosen response is the best of it and
    all its rejected ones, 2305.18290 A.3)."""
    label_smoothing: float = option(0.0, at_least=0, below=0.5)
    """Probability that a label is flipped, in [0, 0.5); for the links sigmoid and robust."""
    length_normalized: bool = option(False)
    """Mean log-ratio over a side's tokens instead of the sum."""
    reference_free: bool = option(False)
    """Leave the reference out of the loss: r_t = logp_t."""
    margin: float = option(None)
    """Target margin subtracted from the difference of rewards; None = 0 (SimPO's γ: 1)."""
    margin_weight: float = option(0.0, at_least=0)
    """Factor of a margin that each row brings (field `margin`), subtracted besides (offset DPO,
    2402.10571); 0 = rows bring none."""
    nll_weight: float = option(0.0, at_least=0)
    """Weight of an added negative log-likelihood a token of the chosen side (RPO, 2404.19733)."""
    reduction: Literal["sequence", "position"] = option("sequence")
    """sequence = the papers' losses; position = cDPO's released code: token j of the chosen against
    token j of the rejected side, the link on each, and the mean over positions."""
    positions_per_pair: int | None = option(None, at_least=1)
    """Divisor of reduction "position", positions without a scored token adding link(0) (the
    released code: the padded row length minus 1); None = the positions of the longer side."""


@dataclass(kw_only=True, unsafe_hash=True)
class DPO(DPOOptions, Objective):
    """Direct preference optimisation (arXiv 2305.18290, eq. 7) on weighted tokens, and relatives.

    The options are documented in `DPOOptions`. With `reduction="position"` a token of weight 0
    keeps its position; a token of segment −1 (masked tool output) has none, and shifts those after.

    Raises:
        ConfigError: (a ValueError) an option out of its range, or two that exclude each other.
    """

    unset: ClassVar[Mapping[str, Any]] = {"beta": 0.1, "margin": 0.0}

    def check(self) -> None:
        position = self.reduction == "position"
        if self.label_smoothing and self.link not in ("sigmoid", "robust"):
            raise ConfigError(
                f"label_smoothing has no effect with link {self.link!r}. Use sigmoid or robust."
            )
        if self.link == "ipo" and (self.margin or self.margin_weight):
            raise ConfigError(
                "link 'ipo' has its own margin, 1/(2·beta). Leave margin and margin_weight at 0."
            )
        if position and self.needs_groups:
            raise ConfigError(
                "link 'plackett_luce' compares whole responses, reduction 'position' tokens of "
                "two. Leave one out."
            )
        if position and (self.link == "ipo" or self.length_normalized):
            raise ConfigError(
                "reduction 'position' excludes link 'ipo' and length_normalized. Leave one out."
            )
        if self.positions_per_pair is not None and not position:
            raise ConfigError(
                "positions_per_pair has no effect with reduction 'sequence': it goes with "
                "reduction='position'. Remove it, or choose that."
            )

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free

    @property
    def needs_margins(self) -> bool:
        return self.margin_weight > 0

    @property
    def needs_groups(self) -> bool:
        return self.link == "plackett_luce"

    @property
    def margin_of_pair(self) -> Linear:
        beta = 1.0 if self.link == "ipo" else self.beta
        normalized = self.length_normalized or self.link == "ipo"
        return Linear(ratio=(beta, -beta), normalized=normalized, shift=self.margin)

    @property
    def not_linear(self) -> str | None:
        if self.reduction == "position":
            return "reduction='position' has a margin for every position, not one for a pair"
        if self.nll_weight:
            return "nll_weight adds a term to the loss that is no function of a pair's margin"
        return None

    def losses(self, terms: Terms) -> "Tensor":
        if self.reduction == "position":
            losses = self._by_position(terms)
        else:
            u, groups = self.margins(terms), terms.groups
            losses = self._link(u if groups is None else groups.soft_minimum(u))
        if self.nll_weight:
            nll, groups = -terms.sides.mean(terms.logp)[:, 0], terms.groups
            losses = losses + self.nll_weight * (nll if groups is None else groups.mean(nll))
        return losses

    def margins(self, terms: Terms) -> "Tensor":
        """(P,) u of each pair."""
        u = self.margin_of_pair.margins(terms.sides, terms.ratio, None, terms.scores)
        return u if terms.margins is None else u - self.margin_weight * terms.margins

    def rewards(self, terms: Terms) -> "Tensor":
        if self.length_normalized and self.reference_free:
            return self.beta * terms.sides.mean(terms.ratio)
        return super().rewards(terms)

    def metrics(self, terms: Terms) -> "dict[str, Tensor]":
        if not self.nll_weight:
            return {}
        return {"nll_loss": terms.sides.average(-terms.sides.mean(terms.logp)[:, 0]).detach()}

    def _by_position(self, terms: Terms) -> "Tensor":
        """(P,) mean over aligned positions of link(β(w·r^w_j − w·r^l_j) − margin)."""
        sides = terms.sides
        table, lengths, active = sides.aligned(sides.weights * terms.ratio)
        u = self.beta * (table[:, 0] - table[:, 1]) - self.margin
        if terms.margins is not None:
            u = u - self.margin_weight * terms.margins[:, None]
        total = (self._link(u) * active).sum(1)
        if self.positions_per_pair is None:
            return total / lengths.clamp(min=1)
        silent = (self.positions_per_pair - lengths).clamp(min=0)
        return (total + silent * self._link(u.new_zeros(()))) / self.positions_per_pair

    def _link(self, u: "Tensor") -> "Tensor":
        from prefkit.loss.links import link_loss

        return link_loss(self.link, u, self.beta, self.label_smoothing)


def SimPO(*, beta: float = 2.0, margin: float = 1.0, nll_weight: float = 0.0) -> DPO:
    """SimPO (arXiv 2405.14734, eq. 6): reference-free, length-normalised, with target margin γ."""
    return DPO(
        beta=beta,
        margin=margin,
        nll_weight=nll_weight,
        reference_free=True,
        length_normalized=True,
    )


@dataclass(kw_only=True)
class DPOPOptions:
    """What `DPOP` has besides the options of `DPO`."""

    # -- method ---------------------------------------------------------------------------------
    penalty: float = option(None, at_least=0)
    """λ of dpop: how much a chosen response below its reference probability costs; None = 50."""


@dataclass(kw_only=True, unsafe_hash=True)
class DPOP(DPOPOptions, DPO):
    """DPO-Positive (arXiv 2402.13228, eq. 3): u = β(S_w − S_l) − βλ·max(0, −S_w).

    The added term is 0 as long as the chosen response is at least as likely as under the reference.
    β 0.3 and λ 50 are what others run it with; they were not checked against the paper.
    """

    unset: ClassVar[Mapping[str, Any]] = {"beta": 0.3, "margin": 0.0, "penalty": 50.0}

    def check(self) -> None:
        super().check()
        if self.reduction == "position" or self.reference_free or self.link == "ipo":
            raise ConfigError(
                "dpop compares whole chosen responses with the reference. Leave reduction, "
                "reference_free and link 'ipo' out."
            )

    @property
    def not_linear(self) -> str | None:
        return "the penalty of dpop depends on the chosen side alone"

    def margins(self, terms: Terms) -> "Tensor":
        sides = terms.sides
        sums = sides.mean(terms.ratio) if self.length_normalized else sides.weighted(terms.ratio)
        return super().margins(terms) - self.beta * self.penalty * (-sums[:, 0]).clamp(min=0)


@dataclass(kw_only=True)
class TDPOOptions(BetaOptions):
    """Options of `TDPO`."""

    # -- method ---------------------------------------------------------------------------------
    alpha: float = option(None, at_least=0)
    """α of tdpo2, weight of the sequential KL term; None = 0.5."""


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


@dataclass(kw_only=True)
class LossOptions(DPOPOptions, DPOOptions, TDPOOptions):
    """The options of every objective, as a training run has them."""


@dataclass(frozen=True)
class Method:
    """A published method: an objective, and what its paper sets.

    Attributes:
        objective: makes the objective from options.
        paper: arXiv number.
        fixed: options that the method is made of; nobody chooses them.
        unset: values of options that are left out, as the paper has them, where they differ from
            the objective's own; a function is called with the options that are given.
        refused: options of the objective that the method does not have.
        level: what a row with a prefix trains: "step", "solution", or "auto" = the row says it.
    """

    objective: Callable[..., Objective]
    paper: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unset: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    level: str = "auto"

    @property
    def reads(self) -> tuple[str, ...]:
        """The options that the method reads."""
        names = inspect.signature(self.objective).parameters
        return tuple(name for name in names if name not in (*self.fixed, *self.refused))

    def build(self, options: Mapping[str, Any]) -> Objective:
        """The objective; options that are None or missing are the paper's."""
        given = {k: v for k in self.reads if (v := options.get(k)) is not None}
        unset = {k: v(given) if callable(v) else v for k, v in self.unset.items()}
        return self.objective(**{**unset, **given, **self.fixed})


def _cdpo_beta(given: Mapping[str, Any]) -> float:
    """Of eq. 9 for a sum over the sequence; of the released script for its position-wise form."""
    return 0.1 if given.get("reduction") == "position" else 1.0


def check_method_reads(method: str, given: Mapping[str, Any]) -> None:
    """Refuses options of a loss that were given and that the method does not read.

    Raises:
        ConfigError: names the methods that read it.
    """
    for name, value in given.items():
        if name in LossOptions.__dataclass_fields__ and name not in METHODS[method].reads:
            readers = [other for other, what in METHODS.items() if name in what.reads]
            raise no_effect(name, value, method, readers)


METHODS: dict[str, Method] = {
    "dpo": Method(DPO, "2305.18290"),
    "step-dpo": Method(DPO, "2406.18629", unset={"beta": 0.4}, level="step"),  # section 4.1
    "scdpo": Method(DPO, "2407.00782", level="solution"),
    "cdpo": Method(DPO, "2411.19943", unset={"beta": _cdpo_beta}),
    "dpop": Method(
        DPOP, "2402.13228", refused=("reduction", "positions_per_pair", "reference_free")
    ),
    "tdpo1": Method(TDPO, "2404.11999", fixed={"variant": "tdpo1"}, refused=("alpha",)),
    "tdpo2": Method(TDPO, "2404.11999", fixed={"variant": "tdpo2"}),
    "simpo": Method(SimPO, "2405.14734", refused=("nll_weight",)),
}
