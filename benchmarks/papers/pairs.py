"""Each seed's data: made by `prefkit build` from its own start, then checked by the world itself.

The checker knows the world and nothing of the builder: it reads the files as a trainer does and
recomputes every line. What it finds is part of the report; a wrong row is counted, not repaired.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers import world
from benchmarks.papers.methods import Regime
from prefkit.errors import PrefkitError

Row = dict[str, Any]

# One sampling for all builds, the model's own distribution, so that losses are compared and not
# temperatures. The published settings are the builds' defaults (docs/paper_index.md).
_SAMPLING: Mapping[str, Any] = {
    "temperature": [1.0],
    "top_p": 1.0,
    "max_tokens": world.SOLUTION_LENGTH + world.LINE_LENGTH,
    "batch_size": 256,
    "grading_workers": 1,
    "answer": "last_number",
}
BUILDS: Mapping[str, Mapping[str, Any]] = {
    "dpo": {"samples": 8},
    "step-dpo": {
        "samples": 6,
        "mistakes_per_question": 2,
        "rectifications": 12,
        "localiser": "benchmarks.papers.verifier:first_wrong",
    },
    "scdpo": {"samples": 8, "max_samples": 16, "wrong_per_question": 1, "process_filter": "none"},
    "cdpo": {
        "samples": 16,
        "contrast_adapter": "none",
        "contrast_learning_rate": 1e-4,
        "contrast_epochs": 3.0,
    },
}


def write_questions(regime: Regime, seed: int, folder: Path) -> None:
    """questions.jsonl of a seed's builds, training problems, and references.jsonl beside it.

    The builders get the answers alone; the reference solutions, of a random way, are for
    fine-tuning.
    """
    rng = random.Random(seed)
    problems = world.problems(regime.questions, "train", 1000 + seed)
    questions = [{"prompt": p.prompt, "answer": str(p.answer)} for p in problems]
    references = [
        {"prompt": p.prompt, "response": p.solution(rng.choice(world.WAYS))} for p in problems
    ]
    write_rows(folder / "questions.jsonl", questions)
    write_rows(folder / "references.jsonl", references)


def build_pairs(method: str, regime: Regime, questions: Path, model: Path, out: Path) -> list[Row]:
    """Runs one of the four builds; its rows, as many as the regime wants.

    Raises:
        PrefkitError: fewer rows came out than the regime needs.
    """
    from prefkit.critical_tokens import weigh
    from prefkit.pairs.run.build import build

    options = {**_SAMPLING, **BUILDS[method]}
    if regime.grader is not None:
        options["grader"] = regime.grader
    paths = {"model": str(model), "out": str(out)}
    result = build(method, str(questions), **paths, last_stage=weigh, **options)
    return select(method, read_rows(result.rows), regime.pairs)


def select(method: str, rows: Sequence[Row], count: int) -> list[Row]:
    """The first `count` rows; of scdpo half naive and half step-controlled pairs."""
    if method == "scdpo":
        naive = [row for row in rows if row["kind"] == "naive"][: count // 2]
        controlled = [row for row in rows if row["kind"] != "naive"][: count - count // 2]
        chosen = naive + controlled
    else:
        chosen = list(rows[:count])
    if len(chosen) < count:
        raise PrefkitError(
            f"{method}: {len(chosen)} pairs came out, {count} are needed. Ask more questions."
        )
    return chosen


def solutions(rows: Sequence[Row], references: Sequence[Row]) -> dict[str, list[Row]]:
    """What fine-tuning learns from: as many solutions of the same questions as there are pairs.

    Args:
        rows: the dpo pairs; their right sides are the model's own right answers.
        references: rows of references.jsonl.
    """
    known = {row["prompt"]: row for row in references}
    return {
        "own": [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows],
        "reference": [known[row["prompt"]] for row in rows],
    }


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------- checking


def check_rows(method: str, rows: Sequence[Row], exact: bool = True) -> dict[str, int]:
    """How many rows are what they claim to be.

    Args:
        method: the build the rows are from.
        exact: answers were compared exactly; else only the steps of step-dpo are held to the truth.

    Returns:
        {"rows", "sound", "lucky"}: all; those without a fault; those whose right side reaches the
        right answer by a wrong step (sound for whole solutions, never for steps).
    """
    sound = lucky = 0
    for row in rows:
        problem = world.parse_prompt(row["prompt"])
        faults = _faults(method, row, problem, exact)
        sound += not faults
        lucky += not world.check(problem, _whole(row, "chosen")).all_steps_right
    return {"rows": len(rows), "sound": sound, "lucky": lucky}


def _faults(method: str, row: Row, problem: world.Problem, exact: bool) -> list[str]:
    """What is wrong with a row, in words."""
    chosen = world.check(problem, _whole(row, "chosen"))
    rejected = world.check(problem, _whole(row, "rejected"))
    faults = []
    if exact and not chosen.answer_right:
        faults.append("the chosen side has a wrong answer")
    if exact and rejected.answer_right:
        faults.append("the rejected side has the right answer")
    if method == "step-dpo":
        at = row["prefix"].count("\n")
        if not _begins_rightly(problem, row["prefix"] + row["chosen"]):
            faults.append("prefix or chosen step is wrong")
        if rejected.first_wrong != at or row["rejected"] == row["chosen"]:
            faults.append("the rejected step is not the first wrong one")
    if row.get("kind") == "step-controlled" and not row["prefix"].endswith("\n"):
        faults.append("the shared front is not whole steps")
    return faults


def _whole(row: Row, side: str) -> str:
    return row.get("prefix", "") + row.get(f"full_{side}", row[side])


def _begins_rightly(problem: world.Problem, text: str) -> bool:
    """Whether a text is the beginning, in whole lines, of a right solution."""
    return any(problem.solution(way).startswith(text) for way in world.WAYS) and text[-1:] == "\n"
