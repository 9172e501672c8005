"""The pieces of a run, each done in a process of its own: prepare a seed, try a setting, measure.

prepare    a seed's start, its four sets of pairs, and what they are worth
try        a method at one setting, on validation problems: chooses the settings
measure    a method at its chosen setting, on test problems: what the tables show
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.papers import pairs, world
from benchmarks.papers.methods import Method, Regime, Setting
from benchmarks.papers.pairs import read_rows, write_rows

DATA = ("dpo", "step-dpo", "scdpo", "cdpo")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        seeds: those of the tables: each has its own start, pairs, order and test problems.
        tuning_seeds: those of the choice of settings.
        test, validation: problems.
        along: samples of the start along which the KL is taken.
        points: settings of each grid that are tried, evenly spread; at most 12.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seeds: tuple[int, ...] = (100, 101)
    test: int = 1000
    validation: int = 400
    along: int = 500
    points: int = 12


def folder_of(work: Path, regime: Regime, seed: int) -> Path:
    """Where a seed's start and data are."""
    return work / regime.name / f"seed-{seed}"


def prepare(work: Path, regime: Regime, size: Size, seed: int) -> dict[str, Any]:
    """Makes a seed's start and data; a folder left half-done is made again.

    Returns:
        "measured" of the start, "checks" of the pairs, and the seconds of each build.
    """
    from benchmarks.papers import solve, start
    from benchmarks.papers.task_order import timed
    from examples.tiny_model import training

    folder = folder_of(work, regime, seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model, tokenizer = start.load_skill()
    start.take_up(model, regime.habit, seed)
    training.save(model, tokenizer, folder / "start")
    pairs.write_questions(regime, seed, folder)
    questions, references = folder / "questions.jsonl", read_rows(folder / "references.jsonl")
    found: dict[str, Any] = {"checks": {}, "build_seconds": {}}
    for name in (name for name in DATA if _is_needed(name, regime)):
        arguments = (name, regime, questions, folder / "start", folder / name)
        rows, seconds = timed(_built, arguments)
        write_rows(folder / f"{name}.jsonl", rows["rows"])
        if name == "dpo":
            for kind, learnt in pairs.solutions(rows["rows"], references).items():
                write_rows(folder / f"{kind}.jsonl", learnt)
        found["checks"][name] = pairs.check_rows(name, rows["rows"], regime.grader is None)
        found["build_seconds"][name] = round(seconds, 1)
    asked = world.problems(size.along, "held_out", seed)
    written = solve.solve(model, tokenizer, asked, temperature=1.0, seed=seed)
    write_rows(folder / "written.jsonl", [{"text": t.text, "ended": t.ended} for t in written])
    return {**found, **_measure(work, regime, size, seed, model, tokenizer)}


def attempt(
    work: Path, regime: Regime, size: Size, seed: int, method: Method, setting: Setting
) -> dict[str, Any]:
    """One setting on validation problems: {"accuracy"}, greedy."""
    from benchmarks.papers import solve

    model, tokenizer = _trained(work, regime, seed, method, setting)
    problems = world.problems(size.validation, "validation", seed)
    solved = solve.solve(model, tokenizer, problems)
    return {"accuracy": solve.share([t.verdict.answer_right for t in solved])}


def measure(
    work: Path, regime: Regime, size: Size, seed: int, method: Method, setting: Setting
) -> dict[str, Any]:
    """One method on held-out problems; see `_measure`."""
    model, tokenizer = _trained(work, regime, seed, method, setting)
    return _measure(work, regime, size, seed, model, tokenizer)


def _trained(
    work: Path, regime: Regime, seed: int, method: Method, setting: Setting
) -> tuple[Any, Any]:
    """Model and tokenizer after training on a seed's rows, from its start."""
    from benchmarks.papers.train import train

    folder = folder_of(work, regime, seed)
    rows = read_rows(folder / f"{method.data}.jsonl")
    return train(method, setting, regime, rows, folder / "start", seed)


def _measure(
    work: Path, regime: Regime, size: Size, seed: int, model: Any, tokenizer: Any
) -> dict[str, Any]:
    """{"accuracy", "steps", "sampled", "kl"}: right answers greedy, every step right greedy, right
    answers sampled at temperature 1, each a share in [0, 1]; nats a solution."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.papers import solve

    folder = folder_of(work, regime, seed)
    problems = world.problems(size.test, "held_out", seed)
    greedy = solve.solve(model, tokenizer, problems)
    sampled = solve.solve(model, tokenizer, problems, temperature=1.0, seed=seed)
    reference = AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32).eval()
    asked = world.problems(size.along, "held_out", seed)
    written = [
        solve.Transcript(problem, row["text"], world.check(problem, row["text"]), row["ended"])
        for problem, row in zip(asked, read_rows(folder / "written.jsonl"), strict=True)
    ]
    kl = solve.sequential_kl(reference, model, tokenizer, written)
    return {
        "accuracy": solve.share([t.verdict.answer_right for t in greedy]),
        "steps": solve.share([t.verdict.all_steps_right for t in greedy]),
        "sampled": solve.share([t.verdict.answer_right for t in sampled]),
        "kl": sum(kl) / len(kl),
    }


def _is_needed(build: str, regime: Regime) -> bool:
    from benchmarks.papers.methods import METHODS

    needed = {METHODS[name].data for name in regime.methods}
    return build in needed or (build == "dpo" and bool(needed & {"own", "reference"}))


def _built(name: str, *arguments: Any) -> dict[str, Any]:
    return {"rows": pairs.build_pairs(name, *arguments)}
