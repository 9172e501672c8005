"""What every objective is: options, a margin for each pair, and a loss of that margin.

Written on per-token quantities, an objective knows no model and no kernel. It is a dataclass of its
options, which the flags and the help of `prefkit train` read too: nothing here or in
`prefkit.loss.objectives` imports torch before a loss is computed.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefkit.loss.margins import Linear
from prefkit.loss.terms import ObjectiveResult, Stats, Terms
from prefkit.loss.weights.hooks import COMPUTED, Hook
from prefkit.options.check import check_options

if TYPE_CHECKING:
    from torch import Tensor

    from prefkit.loss.sides import Sides


class Objective(ABC):
    """A preference loss. A new one is a dataclass that inherits this, in a file of `loss/`.

    It declares its options with `option`, and has `margin_of_pair` (the margin u of a pair, linear
    in the per-token quantities) and `losses` (one loss a pair). Where the loss is no function of u,
    `not_linear` says why; the head's gradient is then made by tokens (`prefkit.loss.passes`). It
    cannot be changed once it is made.

    Raises:
        ConfigError: (a ValueError) an option out of its range, or two that exclude each other.
    """

    unset: ClassVar[Mapping[str, Any]] = {}  # what options that are left out (None) are
    needs_kl: ClassVar[bool] = False
    synonyms: ClassVar[tuple[str, ...]] = ()  # options that only repeat others
    beta: float
    token_weights: "str | Callable[..., Any] | None" = None
    pair_weights: "str | Callable[..., Any] | None" = None
    _hooks: "tuple[Hook | None, ...]" = ()

    def __post_init__(self) -> None:
        for name, value in self.unset.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        from torch.compiler import is_compiling

        if not is_compiling():  # made within a compiled function: annotations cannot be traced
            check_options(self)
        self.settle()
        self.check()
        self._hooks = tuple(
            Hook.of(name, getattr(self, name), self._missing)
            for name in ("token_weights", "pair_weights")
        )
        object.__setattr__(self, "_is_made", True)

    def __setattr__(self, name: str, value: Any) -> None:
        # Its options are those of a run, too, and a frozen dataclass could not share its fields.
        if getattr(self, "_is_made", False):
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super().__setattr__(name, value)

    def settle(self) -> None:  # noqa: B027  # many have none
        """Writes options that can be given in several ways in one way."""

    def check(self) -> None:  # noqa: B027  # many have none
        """Refuses options that exclude each other."""

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def needs_margins(self) -> bool:
        """Whether every row has to bring a margin."""
        return False

    @property
    def needs_groups(self) -> bool:
        """Whether the loss is one of groups of pairs, which the call then has to name."""
        return False

    @property
    def needs_reference_point(self) -> bool:
        """Whether the call has to bring z0, an estimate of KL(policy‖reference)."""
        return False

    @property
    def takes_lone_sides(self) -> bool:
        """Whether a response without another beside it has a loss that means something."""
        return False

    @property
    def mean_over(self) -> Literal["pairs", "groups", "sides"]:
        """What the loss is a mean over, and `num_pairs` counts."""
        return "groups" if self.needs_groups else "pairs"

    @property
    def outputs(self) -> tuple[str, ...]:
        """What `token_stats` has to compute."""
        with_reference = ("ref_logp",) if self.needs_reference else ()
        with_kl = ("kl",) if self.needs_kl else ()
        return ("logp", *with_reference, *with_kl, *self.read_by_hooks)

    @property
    def read_by_hooks(self) -> tuple[str, ...]:
        """What of `outputs` is only read to make weights, and so needs no gradient."""
        return tuple(
            name for name in COMPUTED if any(name in hook.reads for hook in self._hooks if hook)
        )

    @property
    def _missing(self) -> dict[str, str]:
        """What no hook of this loss can read, and why."""
        why = {}
        if not self.needs_reference:
            why["ref_logp"] = "this loss has no reference"
        if not self.needs_kl:
            why["kl"] = "this loss has no KL; tdpo1 and tdpo2 have one"
        return why

    @property
    @abstractmethod
    def margin_of_pair(self) -> Linear:
        """The margin u of a pair, in its coefficients."""

    @property
    def not_linear(self) -> str | None:
        """Why the loss of a pair is no function of `margin_of_pair` alone; None where it is."""
        if self.token_weights is not None:
            return "token_weights are made of what the pass computes, so they are not known before"
        return None

    @property
    def needs_whole_sides(self) -> str | None:
        """Why the tokens of a pair cannot be spread over processes, and what to do instead; None
        where they can."""
        for name in ("token_weights", "pair_weights"):
            if getattr(self, name) is not None:
                return (
                    f"{name}: they are made of whole responses, whose tokens may lie on different "
                    "processes; leave it out"
                )
        return None

    @property
    def linear(self) -> Linear | None:
        """The margin, where the loss of a pair is a function of it alone; None where it is not."""
        return None if self.not_linear else self.margin_of_pair

    @abstractmethod
    def losses(self, terms: Terms) -> "Tensor":
        """(P,) the loss of each pair, or of each group by its number; (P, 2) of each side: as
        `mean_over` says."""

    def rewards(self, terms: Terms) -> "Tensor":
        """(P, 2) the rewards that are logged."""
        return self.beta * terms.reward_sides.weighted(terms.ratio)

    def reward_sides(self, sides: "Sides") -> "Sides":
        """The sides as rewards sum them, where tokens weigh less there; else the same."""
        return sides

    def metrics(self, terms: Terms) -> "dict[str, Tensor]":
        """What is logged besides rewards and log-probabilities."""
        return {}

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, β always, each under one name."""
        usual = type(self)()
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        values = {name: getattr(self, name) for name in names if name not in self.synonyms}
        return {k: v for k, v in values.items() if k == "beta" or v != getattr(usual, k)}

    def __call__(
        self,
        stats: Stats,  # of (T,) tensors
        segments: "Tensor",  # (T,) int64
        weights: "Tensor | None" = None,  # (T,)
        num_pairs: "int | Tensor | None" = None,
        sides: "Sides | None" = None,
        scores: "Tensor | None" = None,  # (P,)
        margins: "Tensor | None" = None,  # (P,)
        groups: "Tensor | None" = None,  # (P,) int64
        reference_point: "Tensor | None" = None,  # ()
    ) -> ObjectiveResult:
        """Loss and metrics of a flat stream of tokens.

        Args:
            stats: what `outputs` names, each (T,).
            segments: (T,) int64: 2i chosen of pair i, 2i + 1 rejected, −1 nothing.
            weights: (T,) or None = 1. A token of weight 0 counts in no sum, as one of segment −1;
                but it is a token of its side, and has a place in reduction="position".
            num_pairs: divisor of the mean; None = the pairs (or groups, or sides: `mean_over`)
                present in this call.
            sides: those of segments and weights, if they are there already (token_weights are made
                of the stats and multiply them here).
            scores: (P,) margins whose gradient was made in one pass; the stats then need none.
            margins: (P,) what the rows ask for, where the objective reads it.
            groups: (P,) int64 number of each pair's group, in [0, P), where the objective needs it:
                the pairs of a group have the same chosen response.
            reference_point: () z0, without gradient, where the objective needs it.

        Raises:
            ValueError: a quantity that the objective needs is missing, or given and not read; a
                pair of one response (on a CPU), where `takes_lone_sides` is False.
        """
        from prefkit.loss.groups import Groups, check_groups
        from prefkit.loss.sides import EachSide, Sides, check_both_sides, check_margins

        logp = _require(stats.logp, "logp")
        kl = _require(stats.kl, "kl") if self.needs_kl else None
        ratio = logp - _require(stats.ref_logp, "ref_logp") if self.needs_reference else logp
        if sides is None:
            sides = Sides.of(segments, weights, logp)
            if not self.takes_lone_sides:
                check_both_sides(sides)
        of_tokens, of_pairs = self._made_weights(stats, segments, sides)
        if of_tokens is not None:
            sides = sides.weighed(of_tokens)
        if self.needs_margins != (margins is not None):
            needs = "needs" if self.needs_margins else "reads no"
            raise ValueError(f"this objective {needs} margins, (P,), one of each pair")
        if margins is not None:
            check_margins(margins, sides.count)
        if self.needs_groups != (groups is not None):
            needs = "needs" if self.needs_groups else "reads no"
            raise ValueError(f"this objective {needs} groups, (P,), the number of each pair's")
        if self.needs_reference_point != (reference_point is not None):
            needs = "needs" if self.needs_reference_point else "reads no"
            raise ValueError(f"this objective {needs} reference_point, ()")
        grouped = None
        if groups is not None:
            check_groups(groups, sides.count)
            grouped = Groups(groups, sides.present)
        given = (logp, ratio, kl, scores, margins, grouped, reference_point)
        terms = Terms(sides, self.reward_sides(sides), *given)
        losses = self.losses(terms)
        counted = EachSide(sides) if self.mean_over == "sides" else grouped or sides
        if of_pairs is not None:
            losses = losses * of_pairs
        rewards, logps = self.rewards(terms).detach(), sides.sum(logp.detach())
        metrics = {**_metrics(rewards, logps, sides), **self.metrics(terms)}
        if num_pairs is None:
            loss = counted.average(losses)
        else:
            loss = (losses * counted.present).sum() / num_pairs
        return ObjectiveResult(loss, metrics, logps, rewards)

    def _made_weights(
        self, stats: Stats, segments: "Tensor", sides: "Sides"
    ) -> "tuple[Tensor | None, Tensor | None]":
        """(T,) factors of tokens' weights and (P,) of pairs' losses, where there are functions."""
        if not any(self._hooks):
            return None, None
        quantities = {
            **{name: _require(getattr(stats, name), name) for name in self.outputs},
            "segments": segments,
            "weights": sides.weights,
            "sides": sides,
        }
        of_tokens, of_pairs = self._hooks
        return (
            None if of_tokens is None else of_tokens(quantities, sides.weights > 0),
            None if of_pairs is None else of_pairs(quantities, sides.present > 0),
        )


def _metrics(rewards: "Tensor", logps: "Tensor", sides: "Sides") -> "dict[str, Tensor]":
    """TRL's names, of (P, 2) rewards and log-probabilities."""
    chosen, rejected = rewards.unbind(1)
    return {
        "rewards/chosen": sides.average(chosen),
        "rewards/rejected": sides.average(rejected),
        "rewards/accuracies": sides.average((chosen > rejected).to(chosen.dtype)),
        "rewards/margins": sides.average(chosen - rejected),
        "logps/chosen": sides.average(logps[:, 0]),
        "logps/rejected": sides.average(logps[:, 1]),
    }


def _require(values: "Tensor | None", name: str) -> "Tensor":
    if values is None:
        raise ValueError(f"this objective needs {name!r}: ask token_stats for objective.outputs")
    return values
