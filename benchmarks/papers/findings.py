"""A regime's measurements by method and seed, as statistics want them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import METHODS, START, Regime
from benchmarks.papers.runs import Comparison, measure_key, prepare_key
from benchmarks.papers.statistics import Interval, interval, paired

METRICS = ("accuracy", "steps", "sampled", "kl")


@dataclass(frozen=True)
class Findings:
    """What a regime gave.

    Attributes:
        regime: which.
        seeds: those in which everything was measured; all lists are in their order.
        values: (method or "start") → metric → one number a seed. "tdpo2 as dpo" is TDPO2 at the
            settings that were chosen for DPO; where they are its own, it is the same run.
        prepared: the records of the seeds' preparation.
    """

    regime: Regime
    seeds: tuple[int, ...]
    values: dict[str, dict[str, list[float]]]
    prepared: list[dict[str, Any]]

    def mean(self, name: str, metric: str) -> Interval:
        """Mean and interval of a method's metric over seeds."""
        return interval(self.values[name][metric])

    def difference(self, ours: str, theirs: str, metric: str = "accuracy") -> Interval:
        """The paired difference of two methods, ours − theirs."""
        return paired(self.values[ours][metric], self.values[theirs][metric])

    def lower_in(self, ours: str, theirs: str, metric: str) -> int:
        """In how many seeds ours has the lower value."""
        pairs = zip(self.values[ours][metric], self.values[theirs][metric], strict=True)
        return sum(a < b for a, b in pairs)

    def without(self, left_out: Sequence[int]) -> "Findings":
        """The same of the other seeds."""
        kept = [i for i, seed in enumerate(self.seeds) if seed not in left_out]
        values = {
            name: {metric: [numbers[i] for i in kept] for metric, numbers in metrics.items()}
            for name, metrics in self.values.items()
        }
        prepared = [self.prepared[i] for i in kept] if self.prepared else []
        return Findings(self.regime, tuple(self.seeds[i] for i in kept), values, prepared)


def collect(comparison: Comparison, regime: Regime, journal: Journal) -> Findings | None:
    """The findings of a regime; None where not one seed is complete."""
    names = {name: (name, name) for name in regime.methods}
    if comparison.is_tuned(regime, journal):
        for name, like in regime.extra:
            equal = comparison.chosen(regime, name, journal) == comparison.chosen(
                regime, like, journal
            )
            names[f"{name} as {like}"] = (name, name if equal else like)
    keys = {
        seed: {name: measure_key(regime.name, *run, seed) for name, run in names.items()}
        for seed in comparison.size.seeds
    }
    seeds = tuple(
        seed
        for seed in comparison.size.seeds
        if prepare_key(regime, seed) in journal and all(k in journal for k in keys[seed].values())
    )
    if not seeds:
        return None
    prepared = [journal[prepare_key(regime, seed)] for seed in seeds]
    values = {START: {metric: [record[metric] for record in prepared] for metric in METRICS}}
    for name in names:
        records = [journal[keys[seed][name]] for seed in seeds]
        values[name] = {metric: [record[metric] for record in records] for metric in METRICS}
    return Findings(regime, seeds, values, prepared)


def label(name: str) -> str:
    """A method's name in tables."""
    if name == START:
        return "start"
    method, _, like = name.partition(" as ")
    shown = METHODS[method].label
    return f"{shown} at {METHODS[like].label}'s settings" if like else shown
