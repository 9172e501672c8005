"""What was read, in a table: rows, settings, and tokens by what counts of them."""

import numpy as np
from rich.table import Table
from rich.text import Text

from prefkit.data.dataset import PairDataset
from prefkit.data.report import two_forms


def summary_table(dataset: PairDataset, read_as: dict[str, str | None]) -> Table:
    report = dataset.report
    lengths = np.array([len(s.ids) for p in dataset.pairs for s in (p.chosen, p.rejected)])
    weighted = sum(
        int((s.scored & (s.weights != 1)).sum())
        for p in dataset.pairs
        for s in (p.chosen, p.rejected)
    )
    table = Table(show_header=False)
    for name, count in report.sources.items():
        table.add_row("rows", Text(f"{count} in {name}"))
    read = (f"{name} {value}" for name, value in read_as.items() if value is not None)
    table.add_row("read with", "\n".join(read))
    table.add_row("pairs", str(report.pairs))
    for line in two_forms(report.chats, report.pairs, "pairs"):
        table.add_row("two forms", line, style="bold")
    table.add_row("skipped", _counts(report.skipped) or "0")
    table.add_row("cut at the end", str(report.truncated))
    table.add_row(
        "tokens a sequence",
        f"{lengths.min()} to {lengths.max()}, median {int(np.median(lengths))}",
    )
    table.add_row(
        "scored tokens", f"{report.scored['chosen']} chosen, {report.scored['rejected']} rejected"
    )
    table.add_row("of these with weight 0", str(report.zero_weight))
    table.add_row("weights other than 1", f"{weighted} tokens in {report.weighted_rows} pairs")
    table.add_row("end tokens scored", f"{report.eos} of {2 * report.pairs} sequences")
    if report.unknown:
        table.add_row("unknown tokens", str(report.unknown), style="bold red")
    table.add_row("tokens in shared prefixes", f"{report.shared_fraction:.0%}")
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in counts.items())
