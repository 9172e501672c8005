"""Accuracy against KL, one point a seed, the mean with its intervals: one panel a regime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers.findings import Findings, label
from benchmarks.pictures import load_pyplot

_COLORS = (
    *("black", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink"),
    *("tab:gray", "tab:olive", "tab:cyan", "tab:blue"),
)
_MARKERS = "osD^v<>PX*hp"


def plot(findings: Sequence[Findings], path: Path) -> bool:
    """Writes the picture; False where there is no matplotlib or nothing to show."""
    if not findings:
        return False
    pyplot = load_pyplot()
    if pyplot is None:
        return False
    width = 7.0 * len(findings)
    figure, axes = pyplot.subplots(1, len(findings), figsize=(width, 5.2), squeeze=False)
    looks: dict[str, tuple[Any, str]] = {}  # a method looks alike in every panel
    for found in findings:
        for name in _methods(found):
            at = len(looks)
            looks.setdefault(name, (_COLORS[at % len(_COLORS)], _MARKERS[at % len(_MARKERS)]))
    for axis, found in zip(axes[0], findings, strict=True):
        _panel(axis, found, looks)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return True


def _methods(found: Findings) -> list[str]:
    """The names that are shown: those at settings of their own."""
    return [name for name in found.values if " as " not in name]


def _panel(axis: Any, found: Findings, looks: Mapping[str, tuple[Any, str]]) -> None:
    for name in _methods(found):
        color, marker = looks[name]
        x, y = found.values[name]["kl"], [100 * v for v in found.values[name]["accuracy"]]
        axis.scatter(x, y, s=14, alpha=0.45, color=color, marker=marker)
        kl, accuracy = found.mean(name, "kl"), found.mean(name, "accuracy")
        bars: dict[str, Any] = {}
        if len(found.seeds) > 1:
            bars = {"xerr": kl.half, "yerr": 100 * accuracy.half}
        axis.errorbar(
            kl.mean,
            100 * accuracy.mean,
            **bars,
            color=color,
            marker=marker,
            markersize=8,
            linestyle="none",
            capsize=2,
            label=label(name),
        )
    axis.set(title=found.regime.title, ylabel="right answers, greedy, %")
    axis.set_xlabel("KL(start‖policy), nats a solution")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
