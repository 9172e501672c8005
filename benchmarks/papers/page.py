"""Writes docs/papers.md: tables, picture and what follows from them, all from the journal."""

from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.papers.claims import verdicts
from benchmarks.papers.findings import Findings, collect, label
from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import METHODS, START
from benchmarks.papers.plot import plot
from benchmarks.papers.runs import Comparison
from benchmarks.papers.schedule import Clock
from benchmarks.papers.statistics import Interval
from prefkit.atomic import write_text

_INTRO = """\
# The four papers in miniature

Written by `make papers` from what it measured; every figure and every verdict below is computed,
none is typed. What the methods are, with equations and published settings:
[paper_index.md](paper_index.md). A toy ranks nothing: what holds for chains of fourteen additions
and 0.6 M parameters need not hold for a language model.

## What is compared

- **World.** A two-digit number and fourteen signed one-digit terms, one operation a line, from left
  to right or from right to left as the first line says (`benchmarks/papers/world.py`). Two right
  solutions of a problem may share no line, and every line can be checked.
- **Start.** A decoder that makes no mistakes (shipped) takes up a habit, anew for every seed: a
  teacher that forgets the carry or borrow in {rate:.0%} of the cases where the operand is {weak},
  never elsewhere ({steps} steps of {batch} solutions). Errors are rare a step, common a solution.
- **Pairs.** Each seed's own, by `prefkit build dpo`, `step-dpo`, `scdpo` and `cdpo` from samples of
  its start at temperature 1. Every method learns from as many examples, in as many steps of as many
  examples: fine-tuning from solutions (references for the questions of the DPO pairs, or the right
  sides of these pairs), SCDPO from half naive, half step-controlled pairs. TDPO and RPO take DPO's
  pairs; of RPO the weight of the likelihood is 1. Only Step-DPO's build looks at steps: whole
  solutions are paired by their answers alone, and some right ones have wrong steps.
- **Settings.** Learning rate and β from a grid of 12 points a method (fine-tuning: 12 learning
  rates), by greedy accuracy on validation problems with starts that no table shows. AdamW,
  β₂ 0.95, warm-up a tenth, then constant; gradient norm clipped at 1.
- **Measured** on test problems of each seed's own: greedy right answers, greedy solutions with
  every step right, right answers at temperature 1, and KL(start‖policy), exact at each token and
  summed along samples of the start. ± is half a 95 % interval over seeds (Student's t);
  differences are paired by seed."""

_LIMITS = """\
## Limits

- One world, one size of model, one kind of mistake; skill shipped, so its training is one seed.
- The settings are the best of a coarse grid for few steps, not those of the papers.
- Reference solutions are right in every step, which pairs made by answers alone do not know of.
- The program that finds the first wrong step for Step-DPO knows arithmetic and is never wrong about
  a line: an advantage that a judge model does not have.
- KL grows with what is learnt: where the start is wrong, being right is far from it. It compares
  methods of like accuracy, or like settings."""


def write_page(
    comparison: Comparison, journal: Journal, path: Path, clock: Clock | None = None
) -> list[Path]:
    """Writes the page and its picture; returns what was written."""
    found = [
        findings
        for regime in comparison.regimes
        if (findings := collect(comparison, regime, journal)) is not None
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = path.with_suffix(".png")
    drawn = plot(found, picture)
    parts = [_intro(comparison), _facts(comparison, journal, clock)]
    for findings in found:
        parts.append(_regime(findings, comparison, journal))
    if drawn:
        parts.append(f"## Accuracy against KL\n\n![accuracy against KL]({picture.name})")
    parts.append(_left_out(comparison, found))
    parts.append(_LIMITS)
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return [path, picture] if drawn else [path]


def _intro(comparison: Comparison) -> str:
    habit = comparison.regimes[0].habit
    text = _INTRO.format(
        rate=habit.weak_rate,
        weak=" or ".join(map(str, habit.weak)),
        steps=habit.steps,
        batch=habit.batch_size,
    )
    if comparison.size.points < len(METHODS["dpo"].grid):
        text += "\n\n**A small run: it shows that the machinery works. Its figures mean nothing.**"
    return text


def _facts(comparison: Comparison, journal: Journal, clock: Clock | None) -> str:
    size = comparison.size
    facts = machine.facts("cpu")
    begun = journal.begun
    spent = sum(record["seconds"] for record in journal.records.values()) / 60
    workers = clock.workers if clock else 2
    lines = [
        f"{begun['date']}, {facts['hardware']}, {workers} processes of one thread, torch "
        f"{facts['torch']}, transformers {facts['transformers']}, commit {begun['commit']}. "
        f"{len(journal.records)} tasks, {spent:.0f} minutes of one core. Not measured on a GPU.",
        f"{len(size.seeds)} seeds, {size.test} test problems and {size.along} samples for the KL a "
        f"seed; settings chosen with {len(size.tuning_seeds)} further start(s) on "
        f"{size.validation} validation problems each.",
    ]
    return "\n".join(lines)


def _regime(findings: Findings, comparison: Comparison, journal: Journal) -> str:
    regime = findings.regime
    parts = [
        f"## {regime.title}",
        f"{regime.about} {regime.pairs} examples, {regime.steps} steps of {regime.batch_size}, "
        f"{len(findings.seeds)} seeds.",
        _results(findings),
        "**What reproduced, and what did not** (an interval that holds 0 decides nothing)",
        verdicts(findings),
    ]
    if regime.extra:
        parts += ["### KL at equal settings, seed by seed", _equal(findings, comparison, journal)]
    parts += ["### Settings", _settings(findings, comparison, journal)]
    parts += ["### The pairs", _pairs(findings)]
    return "\n\n".join(parts)


def _results(findings: Findings) -> str:
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
    return _table(rows)


def _equal(findings: Findings, comparison: Comparison, journal: Journal) -> str:
    setting = comparison.chosen(findings.regime, "dpo", journal)
    names = ["dpo", *(f"{name} as {like}" for name, like in findings.regime.extra)]
    rows = [["seed", *(f"{label(n)} {m}" for n in names for m in ("KL", "greedy %"))]]
    for i, seed in enumerate(findings.seeds):
        cells = []
        for name in names:
            cells.append(f"{findings.values[name]['kl'][i]:.3f}")
            cells.append(f"{100 * findings.values[name]['accuracy'][i]:.1f}")
        rows.append([str(seed), *cells])
    return f"All with DPO's {setting}: the same pairs, in the same order.\n\n" + _table(rows)


def _settings(findings: Findings, comparison: Comparison, journal: Journal) -> str:
    regime = findings.regime
    rows = [["method", "chosen", "validation %", "the grid's range, %", "at its edge"]]
    for name in regime.methods:
        tried = comparison.tried(regime, name, journal)
        chosen = comparison.chosen(regime, name, journal)
        rates = sorted({setting.learning_rate for setting in tried})
        edge = len(rates) > 1 and chosen.learning_rate in (rates[0], rates[-1])
        span = f"{100 * min(tried.values()):.1f} – {100 * max(tried.values()):.1f}"
        best = f"{100 * tried[chosen]:.1f}"
        rows.append([METHODS[name].label, str(chosen), best, span, "learning rate" * edge])
    where = "" if regime.tuned_in == regime.name else f"Chosen in the regime {regime.tuned_in}. "
    return where + "\n\n" * bool(where) + _table(rows)


def _pairs(findings: Findings) -> str:
    rows = [["build", "rows", "without fault", "right by a wrong step", "seconds a build"]]
    for name in findings.prepared[0]["checks"]:
        checks = [record["checks"][name] for record in findings.prepared]
        total = {key: sum(check[key] for check in checks) for key in checks[0]}
        seconds = [record["build_seconds"][name] for record in findings.prepared]
        counts = [str(total[key]) for key in ("rows", "sound", "lucky")]
        rows.append([name, *counts, f"{min(seconds):.0f} – {max(seconds):.0f}"])
    questions = findings.regime.questions
    return (
        f"{questions} questions a build; over all seeds, by a checker that knows the world and not "
        "the builder (`benchmarks/papers/pairs.py`):\n\n" + _table(rows)
    )


def _left_out(comparison: Comparison, found: list[Findings]) -> str:
    lines = []
    seeds = {findings.regime.name: len(findings.seeds) for findings in found}
    for regime in comparison.regimes:
        have, wanted = seeds.get(regime.name, 0), len(comparison.size.seeds)
        if have < wanted:
            lines.append(f"- {regime.title}: {have} of {wanted} seeds are complete.")
    return "## Not finished\n\n" + "\n".join(lines) if lines else ""


# -------------------------------------------------------------------------------------- formatting


def _percent(found: Interval) -> str:
    return f"{100 * found.mean:.1f} ± {100 * found.half:.1f}"


def _plain(found: Interval) -> str:
    return f"{found.mean:.2f} ± {found.half:.2f}"


def _signed(found: Interval) -> str:
    text = f"{100 * found.mean:+.1f} ± {100 * found.half:.1f}"
    return f"**{text}**" if found.sign else text


def _table(rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join(["---"] * len(rows[0])) + " |")
    return "\n".join(lines)
