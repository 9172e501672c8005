"""Memory and time against the number of tokens, as a picture: one column a loss.

The bare matrix products are a line of their own in the panel of times.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Record
from benchmarks.pictures import load_pyplot
from benchmarks.table import MB, without_weight_grad
from benchmarks.ways import WAYS

NAME = "memory_vs_tokens"
_LEAST = 10_000  # bytes: what is below a few pages is no measurement


def plot(records: Sequence[Record], path: Path, caption: str) -> bool:
    """Writes the picture of the records of `memory_vs_tokens`.

    Returns:
        Whether it was written: not where there are no such records or no matplotlib.
    """
    records = [record for record in records if record.question == NAME and record.seconds]
    if not records:
        return False
    pyplot = load_pyplot()
    if pyplot is None:
        return False
    groups = sorted({record.group for record in records})
    figure, axes = pyplot.subplots(2, len(groups), figsize=(6.5 * len(groups), 8), squeeze=False)
    for column, group in enumerate(groups):
        here = [record for record in records if record.group == group]
        case = here[0].case
        axes[0][column].set_title(
            f"{case.loss.upper()}, V {case.vocab}, D {case.dim}, {case.dtype}"
        )
        for name in dict.fromkeys(record.way for record in here):
            _line(axes[0][column], axes[1][column], [r for r in here if r.way == name])
        axes[0][column].set_ylabel("memory added beyond dW, MB")
        axes[1][column].set_ylabel("forward + backward, s")
        axes[1][column].legend(fontsize=8)
        for axis in (axes[0][column], axes[1][column]):
            axis.set(xscale="log", yscale="log", xlabel="tokens N")
            axis.set_xticks(counts := sorted({r.case.tokens for r in here}), map(str, counts))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    figure.text(0.01, 0.005, "\n".join(textwrap.wrap(caption, 95)), fontsize=7)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _line(memory: Any, times: Any, records: Sequence[Record]) -> None:
    style: dict[str, Any] = {"marker": "o", "label": WAYS[records[0].way].label}
    if records[0].way.startswith("gemms"):
        style |= {"linestyle": "--", "color": "black"}
    elif records[0].way == "prefkit":
        style |= {"linewidth": 3}
    tokens = [record.case.tokens for record in records]
    times.plot(tokens, [record.seconds for record in records], **style)
    held = [(r.case.tokens, without_weight_grad(r)) for r in records]
    weighed = [(count, max(extra, _LEAST) / MB) for count, extra in held if extra is not None]
    if weighed:
        memory.plot(*zip(*weighed, strict=True), **style)
