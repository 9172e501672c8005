"""What every objective is: options, a margin for each pair, and a loss of that margin.

Written on per-token quantities, an objective knows no model and no kernel. It is a dataclass of its
options, which the flags and the help of `prefkit train` read too: nothing here or in
`prefkit.loss.objectives` imports torch before a loss is computed.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from prefkit.loss.margins import Linear
from prefkit.options.check import check_options

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
    """

    loss: "Tensor"
    metrics: "dict[str, Tensor]"


@dataclass(frozen=True)
class Terms:
    """The quantities of one call, from which an objective makes its loss.

    Attributes:
        sides: sums over the chosen and the rejected tokens of each pair.
        logp: (T,) log-probabilities under the policy.
        ratio: (T,) r_t = logp_t − ref_logp_t, or logp_t without a reference.
        kl: (T,) KL(ref‖policy)_t in nats, or None.
        scores: (P,) margins whose gradient was made in one pass, or None.
        margins: (P,) margins that the rows ask for, or None.
        groups: which pairs share their chosen response, where the loss is one of groups, or None.
    """

    sides: "Sides"
    logp: "Tensor"
    ratio: "Tensor"
    kl: "Tensor | None" = None
    scores: "Tensor | None" = None
    margins: "Tensor | None" = None
    groups: "Groups | None" = None


class Objective(ABC):
    """A preference loss. A new one is a dataclass that inherits this, in `loss/objectives.py`.

    It declares its options with `option`, and has `margin_of_pair` (the margin u of a pair, linear
    in the per-token quantities) and `losses` (one loss a pair from u). It cannot be changed once it
    is made.

    Raises:
        ConfigError: (a ValueError) an option out of its range, or two that exclude each other.
    """

    unset: ClassVar[Mapping[str, Any]] = {}  # what options that are left out (None) are
    needs_kl: ClassVar[bool] = False
    beta: float

    def __post_init__(self) -> None:
        for name, value in self.unset.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        from torch.compiler import is_compiling

        if not is_compiling():  # made within a compiled function: annotations cannot be traced
            check_options(self)
        self.check()
        object.__setattr__(self, "_is_made", True)

    def __setattr__(self, name: str, value: Any) -> None:
        # Its options are those of a run, too, and a frozen dataclass could not share its fields.
        if getattr(self, "_is_made", False):
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super().__setattr__(name, value)

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
    def outputs(self) -> tuple[str, ...]:
        """What `token_stats` has to compute."""
        with_reference = ("ref_logp",) if self.needs_reference else ()
        return ("logp", *with_reference, *(("kl",) if self.needs_kl else ()))

    @property
    @abstractmethod
    def margin_of_pair(self) -> Linear:
        """The margin u of a pair, in its coefficients."""

    @property
    def not_linear(self) -> str | None:
        """Why the loss of a pair is no function of `margin_of_pair` alone; None where it is."""
        return None

    @property
    def linear(self) -> Linear | None:
        """The margin, where the loss of a pair is a function of it alone; None where it is not."""
        return None if self.not_linear else self.margin_of_pair

    @abstractmethod
    def losses(self, terms: Terms) -> "Tensor":
        """(P,) the loss of each pair; of each group by its number where `needs_groups`."""

    def rewards(self, terms: Terms) -> "Tensor":
        """(P, 2) the rewards that are logged."""
        return self.beta * terms.sides.weighted(terms.ratio)

    def metrics(self, terms: Terms) -> "dict[str, Tensor]":
        """What is logged besides rewards and log-probabilities."""
        return {}

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, β always."""
        usual = type(self)()
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        values = {name: getattr(self, name) for name in names}
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
    ) -> ObjectiveResult:
        """Loss and metrics of a flat stream of tokens.

        Args:
            stats: what `outputs` names, each (T,).
            segments: (T,) int64: 2i chosen of pair i, 2i + 1 rejected, −1 nothing.
            weights: (T,) or None = 1; a weight of 0 is the same as segment −1 (but for the
                positions of reduction="position").
            num_pairs: divisor of the mean; None = the pairs (where `needs_groups`, the groups)
                present in this call.
            sides: those of segments and weights, if they are there already.
            scores: (P,) margins whose gradient was made in one pass; the stats then need none.
            margins: (P,) what the rows ask for, where the objective reads it.
            groups: (P,) int64 number of each pair's group, in [0, P), where the objective needs it:
                the pairs of a group have the same chosen response.

        Raises:
            ValueError: a quantity that the objective needs is missing, or given and not read.
        """
        from prefkit.loss.groups import Groups, check_groups
        from prefkit.loss.sides import Sides, check_margins

        logp = _require(stats.logp, "logp")
        kl = _require(stats.kl, "kl") if self.needs_kl else None
        ratio = logp - _require(stats.ref_logp, "ref_logp") if self.needs_reference else logp
        sides = sides or Sides.of(segments, weights, logp)
        if self.needs_margins != (margins is not None):
            needs = "needs" if self.needs_margins else "reads no"
            raise ValueError(f"this objective {needs} margins, (P,), one of each pair")
        if margins is not None:
            check_margins(margins, sides.count)
        if self.needs_groups != (groups is not None):
            needs = "needs" if self.needs_groups else "reads no"
            raise ValueError(f"this objective {needs} groups, (P,), the number of each pair's")
        grouped = None
        if groups is not None:
            check_groups(groups, sides.count)
            grouped = Groups(groups, sides.present)
        terms = Terms(sides, logp, ratio, kl, scores, margins, grouped)
        losses, counted = self.losses(terms), grouped or sides
        metrics = {**_metrics(self.rewards(terms), logp, sides), **self.metrics(terms)}
        if num_pairs is None:
            return ObjectiveResult(counted.average(losses), metrics)
        return ObjectiveResult((losses * counted.present).sum() / num_pairs, metrics)


def _metrics(rewards: "Tensor", logp: "Tensor", sides: "Sides") -> "dict[str, Tensor]":
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


def _require(values: "Tensor | None", name: str) -> "Tensor":
    if values is None:
        raise ValueError(f"this objective needs {name!r}: ask token_stats for objective.outputs")
    return values
