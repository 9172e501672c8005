"""What is compared: each method's data, loss and grid of settings, and the regimes they run in.

Every method gets the same number of examples (pairs, or solutions for fine-tuning), the same number
of optimiser steps and a grid of the same size; the best point of the grid is chosen on validation
problems with starts of their own, which the table never sees.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from examples.tiny_model.line_model import Habit

LEARNING_RATES, BETAS = (6e-5, 1.2e-4, 2.4e-4), (0.03, 0.1, 0.3, 1.0)
# No β in fine-tuning: as many points, of the learning rate alone.
SUPERVISED_RATES = (1e-5, 2e-5, 3e-5, 6e-5, 1e-4, 1.5e-4, 2.4e-4, 4e-4, 6e-4, 1e-3, 1.6e-3, 2.5e-3)


@dataclass(frozen=True)
class Setting:
    """A point of a grid; `beta` is None for fine-tuning."""

    learning_rate: float
    beta: float | None = None

    def __str__(self) -> str:
        rate = f"lr {self.learning_rate:g}"
        return rate if self.beta is None else f"{rate}, β {self.beta:g}"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    Attributes:
        name: in files and on the command line.
        label: in tables.
        data: which examples it learns from: the pairs of one of the four builds; "own" = the right
            sides of the dpo pairs; "reference" = reference solutions of the same questions.
        options: fields of `PreferenceConfig` beside learning rate and β.
    """

    name: str
    label: str
    data: Literal["dpo", "step-dpo", "scdpo", "cdpo", "own", "reference"]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def supervised(self) -> bool:
        return self.data in ("own", "reference")

    @property
    def grid(self) -> tuple[Setting, ...]:
        """The settings tried, weakest first."""
        if self.supervised:
            return tuple(Setting(rate) for rate in SUPERVISED_RATES)
        return tuple(Setting(*point) for point in itertools.product(LEARNING_RATES, BETAS))


START = "start"  # the name of the model that everything starts from, in records

_ALL = (
    Method(name="sft-reference", label="SFT on gold solutions", data="reference"),
    Method(name="sft-own", label="SFT on own right answers", data="own"),
    Method(name="dpo", label="DPO", data="dpo", options={"method": "dpo"}),
    Method(name="step-dpo", label="Step-DPO", data="step-dpo", options={"method": "step-dpo"}),
    Method(name="scdpo", label="SCDPO", data="scdpo", options={"method": "scdpo"}),
    Method(name="tdpo1", label="TDPO1", data="dpo", options={"method": "tdpo1"}),
    Method(name="tdpo2", label="TDPO2", data="dpo", options={"method": "tdpo2"}),
    Method(name="cdpo", label="cDPO, paper's form", data="cdpo", options={"method": "cdpo"}),
    Method(
        name="cdpo-position",
        label="cDPO, released form",
        data="cdpo",
        options={"method": "cdpo", "reduction": "position"},
    ),
    Method(name="rpo", label="RPO", data="dpo", options={"method": "dpo", "nll_weight": 1.0}),
)
METHODS = {method.name: method for method in _ALL}


@dataclass(frozen=True, kw_only=True)
class Regime:
    """A setting of world and data in which methods are compared.

    Attributes:
        name, title: in files and on the page; `about` says in a sentence what is special.
        methods: names of the methods that run.
        tuned_in: the regime whose chosen settings are used; its own name = tuned here.
        habit: how the starts are spoilt.
        pairs: examples a method learns from.
        steps, batch_size: of training: optimiser steps, examples a step.
        questions: what is asked in each build, more than enough for `pairs`.
        grader: module:function in place of the exact comparison of answers, or None.
        extra: (method, method whose settings it takes): more runs, at equal settings.
    """

    name: str
    title: str
    about: str
    methods: tuple[str, ...]
    tuned_in: str
    habit: Habit = field(default_factory=Habit)
    pairs: int = 64
    steps: int = 16
    batch_size: int = 16
    questions: int = 110
    grader: str | None = None
    extra: tuple[tuple[str, str], ...] = ()


REGIMES = {
    regime.name: regime
    for regime in (
        Regime(
            name="main",
            title="Few pairs, long chains",
            about="Exact answers; every method learns from 64 examples, four times.",
            methods=tuple(METHODS),
            tuned_in="main",
            extra=(("tdpo1", "dpo"), ("tdpo2", "dpo")),
        ),
        Regime(
            name="weak",
            title="A weak verifier",
            about=(
                "The same, but an answer counts as right in the data if it is on the right side of "
                "50: many right answers come from wrong steps. Accuracy is still measured exactly."
            ),
            methods=("sft-own", "dpo", "step-dpo", "tdpo2", "cdpo"),
            tuned_in="main",
            grader="benchmarks.papers.verifier:same_half",
            questions=320,
            pairs=48,
            steps=12,
        ),
    )
}
