"""The settings that were chosen, and what such a choice is worth.

Every method has as many points, but not as wide a grid, and the accuracies that decide are noisy:
the page says how wide, how noisy, and how many settings the noise cannot tell from the chosen one.
"""

from collections.abc import Sequence

from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import METHODS, Regime, Setting
from benchmarks.papers.runs import Comparison, settings_of
from benchmarks.papers.statistics import standard_error
from benchmarks.papers.tables import table


def settings(comparison: Comparison, regime: Regime, journal: Journal) -> str:
    """The section on a regime's settings."""
    if regime.tuned_in != regime.name:
        where = next((r for r in comparison.regimes if r.name == regime.tuned_in), None)
        title = f'"{where.title}"' if where else regime.tuned_in
        return (
            f"Those chosen in the regime {title}, for other data and other numbers of examples and "
            "steps: nothing was tuned here."
        )
    rows = [
        [
            "method",
            "chosen",
            "validation % (each start)",
            "the best, %",
            "standard error",
            "the grid's range, %",
            "within one standard error",
            "at an edge of its grid",
        ]
    ]
    for name in regime.methods:
        tried = comparison.tried(regime, name, journal)
        chosen = comparison.chosen(regime, name, journal)
        error = standard_error(max(tried.values()), _problems(comparison))
        best = max(tried.values())
        others = sum(best - found <= error for found in tried.values()) - 1
        starts = ", ".join(f"{100 * a:.1f}" for a in _each(comparison, regime, name, journal))
        rows.append(
            [
                METHODS[name].label,
                str(chosen),
                f"{100 * tried[chosen]:.1f} ({starts})",
                f"{100 * best:.1f}",
                f"{100 * error:.1f}",
                f"{100 * min(tried.values()):.1f} – {100 * max(tried.values()):.1f}",
                f"{others} of {len(tried) - 1} others",
                at_edge(chosen, list(tried)),
            ]
        )
    return "\n\n".join(
        (_grids(comparison, regime), table(rows), _worth(comparison, regime, journal))
    )


def at_edge(chosen: Setting, tried: Sequence[Setting]) -> str:
    """In words, where a setting lies at the end of what was tried; empty inside."""
    words = []
    rates = sorted({setting.learning_rate for setting in tried})
    betas = sorted({setting.beta for setting in tried if setting.beta is not None})
    for name, value, values in (
        ("learning rate", chosen.learning_rate, rates),
        ("β", chosen.beta, betas),
    ):
        if len(values) > 1 and value in (values[0], values[-1]):
            words.append(f"at the {'lowest' if value == values[0] else 'highest'} {name} tried")
    return ", ".join(words)


def span(tried: Sequence[Setting]) -> str:
    """How many values of what, over which factor: "4 learning rates over a factor of 8 × ..."."""
    words = []
    rates = sorted({setting.learning_rate for setting in tried})
    betas = sorted({setting.beta for setting in tried if setting.beta is not None})
    for values, one, many in (
        (rates, "learning rate", "learning rates"),
        (betas, "β", "values of β"),
    ):
        if len(values) == 1:
            words.append(f"1 {one}")
        elif values:
            words.append(f"{len(values)} {many} over a factor of {values[-1] / values[0]:.3g}")
    return " × ".join(words)


def _grids(comparison: Comparison, regime: Regime) -> str:
    kinds: dict[str, str] = {}
    for name in regime.methods:
        method = METHODS[name]
        kind = "fine-tuning" if method.supervised else "the preference losses"
        kinds.setdefault(kind, span(settings_of(method, comparison.size.points)))
    text = f"Tried: {'; '.join(f'{kind}: {words}' for kind, words in kinds.items())}. "
    text += "Both grids have the same number of points, but not the same width: "
    return text + "a learning rate at an edge might be better beyond it, and so might a β."


def _worth(comparison: Comparison, regime: Regime, journal: Journal) -> str:
    size = comparison.size
    text = (
        "**Much of such a choice is noise.** The standard error is that of "
        f"{len(size.tuning_seeds)} × {size.validation} problems alone. "
    )
    apart = [max(found) - min(found) for found in _of_starts(comparison, regime, journal)]
    if len(size.tuning_seeds) > 1:
        text += (
            "Differences between initial models come on top: the chosen settings' accuracies "
            f"differ by {100 * sum(apart) / len(apart):.1f} points from start to start (mean; at "
            f"most {100 * max(apart):.1f}). "
        )
    return text + (
        "The highest of several noisy figures is also too high. So the choice is not the best "
        "setting but the gentlest one (lowest rate, then highest β) within one standard error of "
        "it."
    )


def _of_starts(comparison: Comparison, regime: Regime, journal: Journal) -> list[list[float]]:
    return [_each(comparison, regime, name, journal) for name in regime.methods]


def _each(comparison: Comparison, regime: Regime, name: str, journal: Journal) -> list[float]:
    """Validation accuracy of the chosen setting from each tuning start."""
    return comparison.accuracies(regime, name, comparison.chosen(regime, name, journal), journal)


def _problems(comparison: Comparison) -> int:
    return len(comparison.size.tuning_seeds) * comparison.size.validation
