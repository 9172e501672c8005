"""The methods: each published one is an objective, and what its paper sets.

The objectives are in `prefkit.loss.dpo` and `prefkit.loss.tdpo`, their options in
`prefkit.loss.fields`. Step-DPO, SCDPO and cDPO are DPO with other segments and weights: one step,
everything after the shared prefix, 1 − s on the rejected tokens.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefkit.loss.dpo import DPO, DPOP, SimPO
from prefkit.loss.fields import LossOptions
from prefkit.loss.objective import Objective
from prefkit.loss.tdpo import TDPO
from prefkit.options.check import no_effect


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
        DPOP,
        "2402.13228",
        refused=(
            *("reduction", "positions_per_pair", "reference_free"),
            *("f_divergence_type", "f_alpha_divergence_coef"),
        ),
    ),
    "tdpo1": Method(TDPO, "2404.11999", fixed={"variant": "tdpo1"}, refused=("alpha",)),
    "tdpo2": Method(TDPO, "2404.11999", fixed={"variant": "tdpo2"}),
    "simpo": Method(SimPO, "2405.14734", refused=("nll_weight",)),
}
