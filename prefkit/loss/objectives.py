"""The losses, each defined once, on per-token quantities.

An objective sees log-probabilities, KLs, segments and weights; it knows no model and no kernel.
With r_t = logp_t − ref_logp_t, weights w_t and, per side, S = Σ w·r and K = Σ w·KL(ref‖policy):

    u = β(S_w − S_l) − κ_l·K_l + κ_w·K_w − margin,     loss = mean over pairs of link(u)

DPO has κ = 0; TDPO1 κ_l = κ_w = β; TDPO2 κ = αβ with K_w detached. Step-DPO, SCDPO and cDPO are DPO
with other segments and weights: one step, everything after the shared front, 1 − s on the rejected.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from prefkit.loss.margins import Linear
from prefkit.loss.sides import Sides, ranks

LINKS = ("sigmoid", "robust", "hinge", "ipo")
REDUCTIONS = ("sequence", "position")


class Stats(Protocol):
    """What an objective reads, each (T,) or None (as in `prefkit_kernels.TokenStats`)."""

    @property
    def logp(self) -> Tensor | None: ...
    @property
    def ref_logp(self) -> Tensor | None: ...
    @property
    def kl(self) -> Tensor | None: ...


@dataclass(frozen=True)
class ObjectiveResult:
    """A loss and what to log.

    Attributes:
        loss: scalar, differentiable.
        metrics: detached scalars, means over the pairs of this call, under TRL's names
            (rewards/*, logps/*) plus kl/chosen and kl/rejected (nats a side) where there is a KL.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7) on weighted tokens, and relatives.

    Args:
        beta: β > 0, strength of the pull towards the reference.
        link: "sigmoid" −(1−ε)·log σ(u) − ε·log σ(−u) (ε = label_smoothing: conservative DPO);
            "robust" the unbiased form of it (arXiv 2403.00409), divided by 1 − 2ε;
            "hinge" max(0, 1 − u) (SLiC, arXiv 2305.10425);
            "ipo" (ΔS̄ − 1/2β)² on token means (arXiv 2310.12036, eq. 17).
        label_smoothing: ε in [0, 0.5), share of pairs believed to be the wrong way round.
        length_normalized: S̄ = Σ w·r / Σ w instead of the sum.
        reference_free: r_t = logp_t.
        margin: subtracted from u (SimPO's γ).
        nll_weight: adds −nll_weight · Σ w·logp / Σ w of the chosen side (RPO, arXiv 2404.19733).
        reduction: "sequence": one u a pair. "position": one u for every aligned position, as in the
            code released with cDPO (arXiv 2411.19943): token j of the chosen against token j of
            the rejected side, link on each, mean over positions. A token of weight 0 keeps its
            place; a token of segment −1 (masked tool output) has none, and shifts what follows.
        positions_per_pair: with "position", divide a pair's sum by this many positions, those
            without a scored token adding link(0). The released code has the padded row length
            minus 1 here. None = the positions of the longer side.
    Raises:
        ValueError: an option out of its range, or two that exclude each other.
    """

    beta: float = 0.1
    link: str = "sigmoid"
    label_smoothing: float = 0.0
    length_normalized: bool = False
    reference_free: bool = False
    margin: float = 0.0
    nll_weight: float = 0.0
    reduction: str = "sequence"
    positions_per_pair: int | None = None
    needs_kl: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)
        _check_choice("link", self.link, LINKS)
        _check_choice("reduction", self.reduction, REDUCTIONS)
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        if self.label_smoothing and self.link not in ("sigmoid", "robust"):
            raise ValueError(f"label_smoothing works with sigmoid and robust, not {self.link!r}")
        if not math.isfinite(self.margin) or not math.isfinite(self.nll_weight):
            raise ValueError("margin and nll_weight must be finite numbers")
        if self.nll_weight < 0:
            raise ValueError(f"nll_weight must be ≥ 0, got {self.nll_weight}")
        if self.link == "ipo" and self.margin:
            raise ValueError("link='ipo' has its own margin 1/(2·beta): leave margin at 0")
        if self.reduction == "position" and (self.link == "ipo" or self.length_normalized):
            raise ValueError("reduction='position' excludes link='ipo' and length_normalized")
        if self.positions_per_pair is not None and self.reduction != "position":
            raise ValueError("positions_per_pair goes with reduction='position'")

    @property
    def needs_reference(self) -> bool:
        return not self.reference_free

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("logp",) if self.reference_free else ("logp", "ref_logp")

    @property
    def linear(self) -> Linear | None:
        """The margin, where the loss of a pair is a function of it alone; None where it is not."""
        if self.reduction == "position" or self.nll_weight:
            return None
        return self._margin

    @property
    def _margin(self) -> Linear:
        beta = 1.0 if self.link == "ipo" else self.beta
        normalized = self.length_normalized or self.link == "ipo"
        return Linear(ratio=(beta, -beta), normalized=normalized, shift=self.margin)

    def __call__(
        self,
        stats: Stats,  # of (T,) tensors
        segments: Tensor,  # (T,) int64
        weights: Tensor | None = None,  # (T,)
        num_pairs: int | Tensor | None = None,
        sides: Sides | None = None,
        scores: Tensor | None = None,  # (P,)
    ) -> ObjectiveResult:
        """Loss and metrics of a flat stream of tokens.

        Args:
            stats: logp and, unless reference_free, ref_logp, each (T,).
            segments: (T,) int64: 2i chosen of pair i, 2i + 1 rejected, −1 nothing.
            weights: (T,) or None = 1; a weight of 0 is the same as segment −1 (but for the
                positions of reduction="position").
            num_pairs: divisor of the mean; None = the pairs present in this call.
            sides: those of segments and weights, if they are there already.
            scores: (P,) margins whose gradient was made in one pass; the stats then need none.
        """
        logp = _require(stats.logp, "logp")
        ref = None if self.reference_free else _require(stats.ref_logp, "ref_logp")
        ratio = logp if ref is None else logp - ref
        sides = sides or Sides.of(segments, weights, logp)
        if self.reduction == "position":
            per_pair = self._by_position(ratio, sides)
        else:
            per_pair = self._link(self._margin.margins(sides, ratio, None, scores))
        if self.nll_weight:
            per_pair = per_pair - self.nll_weight * sides.mean(logp)[:, 0]
        normalized = self.length_normalized and self.reference_free
        rewards = self.beta * (sides.mean(ratio) if normalized else sides.weighted(ratio))
        metrics = _metrics(rewards, logp, sides)
        if self.nll_weight:
            metrics["nll_loss"] = sides.average(-sides.mean(logp)[:, 0]).detach()
        return ObjectiveResult(_mean(per_pair, sides, num_pairs), metrics)

    def _by_position(self, ratio: Tensor, sides: Sides) -> Tensor:
        """(P,) mean over aligned positions of link(β(w·r^w_j − w·r^l_j) − margin)."""
        rank, lengths = ranks(sides.bucket, 2 * sides.count + 1)
        lengths = lengths[:-1].view(sides.count, 2).amax(1)
        width = int(lengths.max()) if sides.count else 0
        here = (sides.bucket < 2 * sides.count).nonzero().squeeze(1)
        table = ratio.new_zeros(2 * sides.count, width)
        values = (sides.weights * ratio)[here]
        table = table.index_put((sides.bucket[here], rank[here]), values, accumulate=True)
        table = table.view(sides.count, 2, width)
        u = self.beta * (table[:, 0] - table[:, 1]) - self.margin
        active = torch.arange(width, device=u.device) < lengths[:, None]
        total = (self._link(u) * active).sum(1)
        if self.positions_per_pair is None:
            return total / lengths.clamp(min=1)
        silent = (self.positions_per_pair - lengths).clamp(min=0)
        return (total + silent * self._link(u.new_zeros(()))) / self.positions_per_pair

    def _link(self, u: Tensor) -> Tensor:
        if self.link == "ipo":
            return (u - 1 / (2 * self.beta)) ** 2
        if self.link == "hinge":
            return torch.relu(1 - u)
        right, wrong = -F.logsigmoid(u), -F.logsigmoid(-u)
        e = self.label_smoothing
        if self.link == "robust":
            return ((1 - e) * right - e * wrong) / (1 - 2 * e)
        return (1 - e) * right + e * wrong if e else right


def SimPO(*, beta: float = 2.0, margin: float = 1.0, nll_weight: float = 0.0) -> DPO:
    """SimPO (arXiv 2405.14734, eq. 6): reference-free, length-normalised, with target margin γ."""
    return DPO(
        beta=beta,
        margin=margin,
        nll_weight=nll_weight,
        reference_free=True,
        length_normalized=True,
    )


@dataclass(frozen=True, kw_only=True)
class TDPO:
    """Token-level DPO with full-vocabulary KL (arXiv 2404.11999, eqs. 15–18).

    u = β(R_w − R_l) − κ(K_l − K_w), loss = −log σ(u), K = Σ_t w_t·KL(ref‖policy)_t.

    Args:
        beta: β > 0.
        alpha: α, weight of the KL term of TDPO2; not used by TDPO1.
        variant: "tdpo2": κ = αβ and no gradient through K_w; "tdpo1": κ = β, gradient through
            both. (The released yaml trains TDPO1 under the name of TDPO2.)
    Raises:
        ValueError: an option out of its range.
    """

    beta: float = 0.1
    alpha: float = 0.5
    variant: str = "tdpo2"
    needs_kl: bool = field(default=True, init=False, repr=False)
    needs_reference: bool = field(default=True, init=False, repr=False)
    outputs: tuple[str, ...] = field(default=("logp", "ref_logp", "kl"), init=False, repr=False)

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)
        _check_choice("variant", self.variant, ("tdpo1", "tdpo2"))
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"alpha must be a finite number ≥ 0, got {self.alpha}")

    @property
    def linear(self) -> Linear:
        """The margin: the loss of a pair is a function of it alone."""
        first = self.variant == "tdpo1"
        kappa = self.beta if first else self.alpha * self.beta
        return Linear(
            ratio=(self.beta, -self.beta), kl=(kappa, -kappa), kl_detached=(not first, False)
        )

    def __call__(
        self,
        stats: Stats,  # of (T,) tensors
        segments: Tensor,  # (T,) int64
        weights: Tensor | None = None,  # (T,)
        num_pairs: int | Tensor | None = None,
        sides: Sides | None = None,
        scores: Tensor | None = None,  # (P,)
    ) -> ObjectiveResult:
        """Loss and metrics of a flat stream of tokens; arguments as in `DPO.__call__`.

        The logged reward of a side is β(R + K), as in the paper; kl/* are plain sums over tokens.
        """
        logp = _require(stats.logp, "logp")
        kl = _require(stats.kl, "kl")
        sides = sides or Sides.of(segments, weights, logp)
        ratio = logp - _require(stats.ref_logp, "ref_logp")
        u = self.linear.margins(sides, ratio, kl, scores)
        rewards = self.beta * (sides.weighted(ratio) + sides.weighted(kl))
        metrics = _metrics(rewards, logp, sides)
        kl_sums = sides.sum(torch.where(sides.bucket < 2 * sides.count, kl, 0)).detach()
        metrics["kl/chosen"] = sides.average(kl_sums[:, 0])
        metrics["kl/rejected"] = sides.average(kl_sums[:, 1])
        return ObjectiveResult(_mean(-F.logsigmoid(u), sides, num_pairs), metrics)


Objective = DPO | TDPO


def _mean(per_pair: Tensor, sides: Sides, num_pairs: int | Tensor | None) -> Tensor:
    if num_pairs is None:
        return sides.average(per_pair)
    return (per_pair * sides.present).sum() / num_pairs


def _metrics(rewards: Tensor, logp: Tensor, sides: Sides) -> dict[str, Tensor]:
    """TRL's names; rewards (P, 2) as the loss sees them, logps as unweighted sums over tokens."""
    rewards, logps = rewards.detach(), sides.sum(logp.detach())
    chosen, rejected = rewards.unbind(1)
    return {
        "rewards/chosen": sides.average(chosen),
        "rewards/rejected": sides.average(rejected),
        "rewards/accuracies": sides.average((chosen > rejected).to(chosen.dtype)),
        "rewards/margins": sides.average(chosen - rejected),
        "logps/chosen": sides.average(logps[:, 0]),
        "logps/rejected": sides.average(logps[:, 1]),
    }


def _require(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise ValueError(f"this objective needs {name!r}: ask token_stats for objective.outputs")
    return values


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value}")


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
