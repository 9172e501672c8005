"""The whole comparison as lists of tasks: prepare, choose settings, measure, regime by regime."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import METHODS, Method, Regime, Setting
from benchmarks.papers.statistics import standard_error
from benchmarks.papers.task_order import Clock, Task, run
from benchmarks.papers.tasks import Size, attempt, measure, prepare

# Seconds on one core of the machine these were first run on; they only shape the projection.
_PREPARE, _TRAIN, _SOLVE = 100.0, 8.0, 0.010


@dataclass(frozen=True)
class Comparison:
    """Regimes, how much is measured, and where things lie.

    Attributes:
        regimes: in the order they run; one whose settings another uses comes first.
        size: problems and seeds.
        work: folder of starts, pairs and the journal.
    """

    regimes: tuple[Regime, ...]
    size: Size
    work: Path

    def terms(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {"regimes": [asdict(regime) for regime in self.regimes], "size": asdict(self.size)}

    def run(self, journal: Journal, clock: Clock) -> None:
        """Does all that the journal does not have yet."""
        clock.planned = sum(task.expected for task in self._all_tasks() if task.key not in journal)
        log = journal.path.with_name("processes.log")
        for regime in self.regimes:
            print(f"{regime.title}: {regime.about}", flush=True)
            run(list(self._prepare(regime)), journal, clock, log)
            run(self._ready(self._attempts(regime), journal), journal, clock, log)
            if not self.is_tuned(regime, journal):
                return
            run(self._ready(self._measures(regime, journal), journal), journal, clock, log)

    def _ready(self, tasks: Iterable[Task], journal: Journal) -> list[Task]:
        """Those whose seed has been prepared: where time ran out, some have not."""
        return [t for t in tasks if prepare_key(t.arguments[1], t.arguments[3]) in journal]

    def _all_tasks(self) -> Iterator[Task]:
        for regime in self.regimes:
            yield from self._prepare(regime)
            yield from self._attempts(regime)
            yield from self._measures(regime, None)

    def _prepare(self, regime: Regime) -> Iterator[Task]:
        size = self.size
        seeds = (*self._tuning_seeds(regime), *size.seeds)
        for seed in seeds:
            arguments = (self.work, regime, size, seed)
            expected = _PREPARE * regime.questions / 110 + 2 * _SOLVE * size.test
            yield Task(prepare_key(regime, seed), prepare, arguments, expected)

    def _tuning_seeds(self, regime: Regime) -> tuple[int, ...]:
        return self.size.tuning_seeds if regime.tuned_in == regime.name else ()

    def _attempts(self, regime: Regime) -> Iterator[Task]:
        for name in regime.methods:
            for setting in settings_of(METHODS[name], self.size.points):
                for seed in self._tuning_seeds(regime):
                    key = attempt_key(regime.name, name, setting, seed)
                    arguments = (self.work, regime, self.size, seed, METHODS[name], setting)
                    expected = _TRAIN + _SOLVE * self.size.validation
                    yield Task(key, attempt, arguments, expected)

    def _measures(self, regime: Regime, journal: Journal | None) -> Iterator[Task]:
        """With no journal, for the projection alone: with settings that are not the chosen ones."""
        runs = [(name, name) for name in regime.methods] + list(regime.extra)
        for seed in self.size.seeds:
            for name, like in runs:
                if journal is None:
                    setting = METHODS[like].grid[0]
                else:
                    setting = self.chosen(regime, like, journal)
                    if name != like and setting == self.chosen(regime, name, journal):
                        continue  # the method's own run is at these settings already
                key = measure_key(regime.name, name, like, seed)
                arguments = (self.work, regime, self.size, seed, METHODS[name], setting)
                expected = _TRAIN + 2 * _SOLVE * self.size.test
                yield Task(key, measure, arguments, expected)

    def tried(self, regime: Regime, name: str, journal: Journal) -> dict[Setting, float]:
        """Mean validation accuracy of the settings that all tuning seeds have tried."""
        found = {}
        for setting in settings_of(METHODS[name], self.size.points):
            each = self.accuracies(regime, name, setting, journal)
            if len(each) == len(self.size.tuning_seeds):
                found[setting] = sum(each) / len(each)
        return found

    def accuracies(
        self, regime: Regime, name: str, setting: Setting, journal: Journal
    ) -> list[float]:
        """Validation accuracy of a setting, one a tuning seed that has tried it."""
        keys = [
            attempt_key(regime.tuned_in, name, setting, seed) for seed in self.size.tuning_seeds
        ]
        return [journal[key]["accuracy"] for key in keys if key in journal]

    def chosen(self, regime: Regime, name: str, journal: Journal) -> Setting:
        """The gentlest setting within one standard error of the best on validation problems.

        Gentle: a low learning rate, then a strong pull (high β). The best of several noisy figures
        is chosen by its noise; a rule that takes the gentlest of those that noise cannot tell from
        it is steadier (Breiman et al. 1984, section 3.4.3).
        """
        tried = self.tried(regime, name, journal)
        best = max(tried.values())
        problems = len(self.size.tuning_seeds) * self.size.validation
        error = standard_error(best, problems)
        near = [setting for setting, found in tried.items() if best - found <= error]
        return min(near, key=lambda setting: (setting.learning_rate, -(setting.beta or 0.0)))

    def is_tuned(self, regime: Regime, journal: Journal) -> bool:
        """Whether every method has tried a setting."""
        return all(self.tried(regime, name, journal) for name in regime.methods)


def settings_of(method: Method, points: int) -> Sequence[Setting]:
    """`points` settings of a method's grid, evenly spread."""
    grid = method.grid
    if points >= len(grid):
        return grid
    return [grid[(2 * i + 1) * len(grid) // (2 * points)] for i in range(points)]


def prepare_key(regime: Regime, seed: int) -> str:
    return f"{regime.name}/prepare/{seed}"


def attempt_key(regime: str, method: str, setting: Setting, seed: int) -> str:
    return f"{regime}/try/{method}/{setting}/{seed}"


def measure_key(regime: str, method: str, like: str, seed: int) -> str:
    """`like` is the method whose chosen settings the run was made with."""
    return f"{regime}/measure/{method}/{seed}" + ("" if like == method else f"/as {like}")
