"""Two pictures of contrastive scores: where wrong and right tokens lie, and solutions as heat."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.critical_tokens_measure import Solution

SHOWN = 3  # solutions


def plot(solutions: Sequence["Solution"], s: np.ndarray, path: Path) -> None:
    """Writes a PNG.

    Args:
        solutions: with their wrong tokens.
        s: (tokens of all solutions,) scores.
        path: where to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), width_ratios=(1, 1.3))
    _histogram(left, np.concatenate([one.any for one in solutions]), s)
    ends = np.cumsum([len(one.text) for one in solutions])[:-1]
    parts = np.split(s, ends)
    for place in range(SHOWN):
        _heat(right, solutions[place], parts[place], 10 * place)
    right.set(xlim=(-0.5, 10 * SHOWN - 1), ylim=(8, -1.2))
    right.set_axis_off()
    right.set_title("wrong solutions, darker = higher weight 1 − s; line: wrong digit", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _histogram(axes: Any, wrong: np.ndarray, s: np.ndarray) -> None:
    bins = np.linspace(0, 1, 21)
    for chosen, name, colour in ((~wrong, "right", "tab:green"), (wrong, "wrong", "tab:red")):
        axes.hist(
            s[chosen], bins=bins, density=True, alpha=0.6, color=colour, label=f"{name} tokens"
        )
    axes.set(xlabel="s (LoRA, b = 1)", ylabel="density (log)", yscale="log")
    axes.legend(fontsize=8)


def _heat(axes: Any, solution: "Solution", s: np.ndarray, column: int) -> None:
    """One solution, a character a cell."""
    axes.text(column, -0.6, solution.prompt.strip(), family="monospace", fontsize=7)
    row, place = 0, column
    for character, score, wrong in zip(solution.text, s, solution.any, strict=True):
        weight = float(1 - score)
        face = (0.84, 0.15, 0.16, 0.08 + 0.9 * weight)
        axes.add_patch(_cell(place, row, face))
        if character == "\n":
            row, place = row + 1, column
            continue
        axes.text(place + 0.5, row + 0.55, character, family="monospace", ha="center", va="center")
        if wrong:
            axes.plot([place + 0.15, place + 0.85], [row + 0.93] * 2, color="black", linewidth=2)
        place += 1


def _cell(x: int, y: int, face: tuple[float, ...]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor=face, edgecolor="none")
