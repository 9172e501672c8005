"""Writes docs/papers.md: tables, picture and what follows from them, all from the journal."""

import textwrap
from pathlib import Path

from benchmarks import machine
from benchmarks.papers import tables
from benchmarks.papers.claims import acceptance, verdicts
from benchmarks.papers.findings import Findings, collect
from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import METHODS
from benchmarks.papers.pairs import BUILDS
from benchmarks.papers.plot import plot
from benchmarks.papers.runs import Comparison
from benchmarks.papers.settings import settings
from benchmarks.papers.task_order import Clock
from benchmarks.papers.words import INTRO, LIMITS, SEEN_BEFORE, SMALL_RUN, TRIALS
from prefkit.files.atomic import write_text


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
    parts = [_intro(comparison), _facts(comparison, journal, clock), TRIALS]
    for findings in found:
        parts.append(_regime(findings, comparison, journal))
    if drawn:
        parts.append(f"## Accuracy against KL\n\n![accuracy against KL]({picture.name})")
    parts.append(_left_out(comparison, found))
    parts.append(LIMITS)
    write_text(path, wrapped("\n\n".join(part for part in parts if part)) + "\n")
    return [path, picture] if drawn else [path]


def wrapped(text: str) -> str:
    """Markdown with paragraphs and list items wrapped at 100 columns; tables stay as they are."""
    lines: list[str] = []
    for line in text.split("\n"):
        indent = "  " if line.startswith(("- ", "  ")) else ""
        plain = line.startswith(("|", "#", "!")) or len(line) <= 100
        lines += (
            [line]
            if plain
            else textwrap.wrap(
                line, 100, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
            )
        )
    return "\n".join(lines)


def _intro(comparison: Comparison) -> str:
    habit = comparison.regimes[0].habit
    text = INTRO.format(
        rate=habit.weak_rate,
        weak=" or ".join(map(str, habit.weak)),
        steps=habit.steps,
        batch=habit.batch_size,
        samples=_samples(),
    )
    if comparison.size.points < len(METHODS["dpo"].grid):
        text += f"\n\n{SMALL_RUN}"
    return text


def _samples() -> str:
    """What each build samples, in words."""
    step, scdpo = BUILDS["step-dpo"], BUILDS["scdpo"]
    return (
        f"a question, {BUILDS['dpo']['samples']} samples for DPO, {step['samples']} and "
        f"{step['rectifications']} for each of up to {step['mistakes_per_question']} mistakes for "
        f"Step-DPO, {scdpo['samples']} to {scdpo['max_samples']} and continuations for SCDPO, "
        f"{BUILDS['cdpo']['samples']} and two more trained models for cDPO"
    )


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
        tables.results(findings),
        "**What was asked of this run**",
        acceptance(findings),
        "**What reproduced, and what did not** (an interval that holds 0 decides nothing)",
        verdicts(findings, SEEN_BEFORE),
    ]
    if regime.extra:
        equal = tables.equal_settings(findings, comparison, journal)
        parts += ["### KL at equal settings, seed by seed", equal]
    parts += ["### Settings", settings(comparison, regime, journal)]
    parts += ["### The pairs", tables.pairs(findings)]
    return "\n\n".join(parts)


def _left_out(comparison: Comparison, found: list[Findings]) -> str:
    lines = []
    seeds = {findings.regime.name: len(findings.seeds) for findings in found}
    for regime in comparison.regimes:
        have, wanted = seeds.get(regime.name, 0), len(comparison.size.seeds)
        if have < wanted:
            lines.append(f"- {regime.title}: {have} of {wanted} seeds are complete.")
    return "## Not finished\n\n" + "\n".join(lines) if lines else ""
