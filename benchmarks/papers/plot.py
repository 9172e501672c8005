"""Accuracy against KL, one point a seed, the mean with its intervals: one panel a regime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers.findings import Findings, label
from benchmarks.pictures import load_pyplot

_MARKERS = "osD^v<>PX*h"


def plot(findings: Sequence[Findings], path: Path) -> bool:
    """Writes the picture; False where there is no matplotlib or nothing to show."""
    if not findings:
        return False
    pyplot = load_pyplot()
    if pyplot is None:
        return False
    width = 7.0 * len(findings)
    figure, axes = pyplot.subplots(1, len(findings), figsize=(width, 5.2), squeeze=False)
    for axis, found in zip(axes[0], findings, strict=True):
        _panel(axis, found)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return True


def _panel(axis: Any, found: Findings) -> None:
    names = [name for name in found.values if " as " not in name]
    for i, name in enumerate(names):
        color, marker = f"C{i % 10}", _MARKERS[i % len(_MARKERS)]
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
