"""Tables of the page: what a regime gave, KL at equal settings, the pairs; and how they look."""

from typing import Any

from benchmarks.papers.findings import Findings, label
from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import START
from benchmarks.papers.runs import Comparison
from benchmarks.papers.statistics import Interval


def results(findings: Findings) -> str:
    """A row a method: accuracies, KL, differences from the start and from DPO."""
    head = ["", "greedy %", "every step right %", "sampled %", "KL, nats"]
    rows = [[*head, "greedy − start", "greedy − DPO"]]
    for name in findings.values:
        if " as " in name:
            continue
        cells = [_percent(findings.mean(name, m)) for m in ("accuracy", "steps", "sampled")]
        cells.append("0" if name == START else _plain(findings.mean(name, "kl")))
        for other in (START, "dpo"):
            same = other == name or other not in findings.values
            cells.append("" if same else _signed(findings.difference(name, other)))
        rows.append([label(name), *cells])
    return table(rows) + "\n\nBold: the interval does not hold 0."


def equal_settings(findings: Findings, comparison: Comparison, journal: Journal) -> str:
    """KL and accuracy of the runs that share DPO's settings, seed by seed."""
    setting = comparison.chosen(findings.regime, "dpo", journal)
    names = ["dpo", *(f"{name} as {like}" for name, like in findings.regime.extra)]
    rows = [["seed", *(f"{label(n)} {m}" for n in names for m in ("KL", "greedy %"))]]
    for i, seed in enumerate(findings.seeds):
        cells = []
        for name in names:
            cells.append(f"{findings.values[name]['kl'][i]:.3f}")
            cells.append(f"{100 * findings.values[name]['accuracy'][i]:.1f}")
        rows.append([str(seed), *cells])
    return f"All with DPO's {setting}: the same pairs, in the same order.\n\n" + table(rows)


def pairs(findings: Findings) -> str:
    """What an independent checker found in the builds' rows."""
    rows = [["build", "rows", "without fault", "right by a wrong step", "seconds a build"]]
    for name in findings.prepared[0]["checks"]:
        checks = [record["checks"][name] for record in findings.prepared]
        total = {key: sum(check[key] for check in checks) for key in checks[0]}
        seconds = [record["build_seconds"][name] for record in findings.prepared]
        counts = [str(total[key]) for key in ("rows", "sound", "lucky")]
        rows.append([name, *counts, f"{min(seconds):.0f} – {max(seconds):.0f}"])
    regime = findings.regime
    answers = "" if regime.grader is None else ", which here does not look at answers"
    return (
        f"{regime.questions} questions a build; over all seeds, by a checker that knows the world "
        f"and not the builder (`benchmarks/papers/pairs.py`){answers}:\n\n" + table(rows)
    )


# -------------------------------------------------------------------------------------- formatting


def table(rows: list[list[Any]]) -> str:
    """Rows as a table of Markdown, the first of them its head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join(["---"] * len(rows[0])) + " |")
    return "\n".join(lines)


def _percent(found: Interval) -> str:
    return f"{100 * found.mean:.1f} ± {100 * found.half:.1f}"


def _plain(found: Interval) -> str:
    return f"{found.mean:.2f} ± {found.half:.2f}"


def _signed(found: Interval) -> str:
    text = f"{100 * found.mean:+.1f} ± {100 * found.half:.1f}"
    return f"**{text}**" if found.sign else text
