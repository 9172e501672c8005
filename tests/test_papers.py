"""The papers' comparison: statistics, the checker of pairs, the journal, and a run of all of it."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.papers import pairs, world
from benchmarks.papers.claims import CLAIMS, verdict
from benchmarks.papers.findings import collect
from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import METHODS, REGIMES
from benchmarks.papers.page import write_page
from benchmarks.papers.runs import Comparison, settings_of
from benchmarks.papers.schedule import Clock, Task, run
from benchmarks.papers.start import LENGTH, Habit, draw_batch, make_tokenizer
from benchmarks.papers.statistics import interval, paired, t_cdf, t_quantile
from benchmarks.papers.tasks import Size

# -------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("freedom", "closed"),
    [
        (1, math.tan(0.475 * math.pi)),  # Cauchy
        (2, 0.95 * math.sqrt(2 / (1 - 0.95**2))),
    ],
)
def test_quantiles_of_student_s_t_have_their_closed_forms(freedom, closed):
    assert t_quantile(0.975, freedom) == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("freedom", [3, 4, 5, 9, 30])
def test_the_distribution_is_the_integral_of_its_density(freedom):
    grid = np.linspace(0, 2.5, 20_001)
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    density = scale * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
    area = float(np.sum((density[1:] + density[:-1]) / 2) * (grid[1] - grid[0]))
    assert t_cdf(2.5, freedom) == pytest.approx(0.5 + area, abs=1e-8)


def test_an_interval_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4000, 5))
    covered = [abs(found.mean - 3.0) <= found.half for found in map(interval, samples.tolist())]
    assert abs(np.mean(covered) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 4000)


def test_an_interval_against_numpy():
    values = [0.61, 0.58, 0.66, 0.60, 0.63]
    found = interval(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.half == pytest.approx(2.776445105 * np.std(values, ddof=1) / math.sqrt(5))
    assert interval([0.5]).half == math.inf
    assert interval([0.5]).sign == 0
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_pairing_takes_out_what_seeds_share():
    ours, theirs = [0.91, 0.71, 0.51], [0.90, 0.69, 0.50]
    found = paired(ours, theirs)
    assert found.mean == pytest.approx(0.04 / 3)
    assert found.half == pytest.approx(interval(np.subtract(ours, theirs).tolist()).half)
    assert found.half < 0.1 * interval(ours).half
    with pytest.raises(ValueError):
        paired(ours, theirs[:2])


# ------------------------------------------------------------------------------------------- world


def test_solutions_of_both_ways_are_right_and_share_no_step():
    for problem in world.problems(20, "test", 3):
        right = [problem.solution(way) for way in world.WAYS]
        assert all(world.check(problem, text).all_steps_right for text in right)
        assert all(world.check(problem, text).answer_right for text in right)
        assert all(len(text) == world.SOLUTION_LENGTH for text in right)
        assert world.parse_prompt(problem.prompt) == problem
        assert len(problem.prompt) == world.PROMPT_LENGTH
        assert all(eval(line.replace("=", "==")) for line in problem.lines("<")[1:])


def test_the_checker_finds_the_first_wrong_line():
    problem = world.problems(1, "train", 0)[0]
    lines = list(problem.lines("<"))
    lines[5] = lines[5][:-3] + ("11\n" if lines[5][-3:] != "11\n" else "12\n")
    found = world.check(problem, "".join(lines))
    assert found.first_wrong == 5
    assert found.answer_right
    assert world.check(problem, problem.solution("<") + "1+1=2\n").first_wrong == 15
    assert world.check(problem, "".join(problem.lines("<")[:-1])).first_wrong == 14
    assert world.check(problem, ">\n" + "".join(problem.lines("<")[1:])).first_wrong == 1
    assert world.check(problem, "").answer is None


def test_splits_do_not_meet():
    """By their texts. One seed draws the same sequence for all splits: were it not divided, the
    three would hold the same problems."""
    drawn = {split: world.problems(200, split, 1) for split in ("train", "validation", "test")}
    texts = {split: {p.prompt for p in some} for split, some in drawn.items()}
    assert {len(some) for some in texts.values()} == {200}
    for ours, theirs in itertools.combinations(texts.values(), 2):
        assert not ours & theirs
    assert drawn["test"] == world.problems(200, "test", 1) != world.problems(200, "test", 2)


def test_the_teacher_writes_right_solutions_but_for_its_habit():
    tokenizer, rng = make_tokenizer(), np.random.default_rng(0)
    for habit in (None, Habit(weak=(7,), weak_rate=1.0)):
        ids = draw_batch(rng, 32, habit)
        assert ids.shape == (32, LENGTH)
        texts = [tokenizer.decode(row[:-1]) for row in ids]
        assert (ids[:, -1] == tokenizer.eos_token_id).all()
        for text in texts:
            cut = world.PROMPT_LENGTH
            found = world.check(world.parse_prompt(text[:cut]), text[cut:])
            if habit is None:
                assert found.all_steps_right
            elif not found.all_steps_right:
                line = text[cut:].splitlines()[found.first_wrong]
                assert line[3] == "7"
                assert line[0] == line[5]  # the tens digit as it was


# ------------------------------------------------------------------------------- checker of pairs


def _step_row(problem: world.Problem, at: int) -> dict:
    right = problem.lines(">")
    wrong = right[at][:-2] + ("1\n" if right[at][-2] != "1" else "2\n")
    left = wrong[-3:-1]
    rest = [left + line[2:] for line in right[at + 1 :]]
    return {
        "prompt": problem.prompt,
        "prefix": "".join(right[:at]),
        "chosen": right[at],
        "rejected": wrong,
        "full_chosen": "".join(right[at:]),
        "full_rejected": "".join([wrong, *rest[:-1], right[-1][:-3] + "00\n"]),
    }


def test_a_sound_step_row_passes_and_each_fault_is_found():
    problem = world.problems(1, "train", 5)[0]
    row = _step_row(problem, 4)
    assert pairs.check_rows("step-dpo", [row]) == {"rows": 1, "sound": 1, "lucky": 0}
    faulty = [
        {**row, "prefix": row["prefix"].replace(problem.lines(">")[2], "10+1=11\n")},
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]},
        {**row, "chosen": row["rejected"]},
        {**row, "chosen": row["chosen"].strip()},
        {**row, "full_rejected": row["full_chosen"]},
        _step_row(problem, 4) | {"full_chosen": row["full_rejected"]},
    ]
    for wrong in faulty:
        assert pairs.check_rows("step-dpo", [wrong])["sound"] == 0, wrong


def test_whole_solutions_are_held_to_their_answers():
    problem = world.problems(1, "train", 6)[0]
    right, lines = problem.solution("<"), list(problem.lines("<"))
    wrong = "".join([*lines[:-1], lines[-1][:-3] + "00\n"])
    lucky = "".join([*lines[:3], "10+1=12\n", *lines[4:]])
    row = {"prompt": problem.prompt, "chosen": right, "rejected": wrong}
    assert pairs.check_rows("dpo", [row])["sound"] == 1
    assert pairs.check_rows("dpo", [{**row, "chosen": lucky}]) == {
        "rows": 1,
        "sound": 1,
        "lucky": 1,
    }
    assert pairs.check_rows("dpo", [{**row, "rejected": lucky}])["sound"] == 0
    assert pairs.check_rows("dpo", [{**row, "rejected": lucky}], exact=False)["sound"] == 1


def test_scdpo_takes_half_of_each_kind():
    rows = [{"kind": kind} for kind in ("naive", "step-controlled") * 5]
    chosen = pairs.select("scdpo", rows, 6)
    assert [row["kind"] for row in chosen] == ["naive"] * 3 + ["step-controlled"] * 3
    with pytest.raises(Exception, match="11 are needed"):
        pairs.select("scdpo", rows, 11)


# ---------------------------------------------------------------------------------- the run itself


def test_every_method_has_a_grid_of_the_same_size():
    assert {len(method.grid) for method in METHODS.values()} == {12}
    for method in METHODS.values():
        assert settings_of(method, 12) == method.grid
        assert len(set(settings_of(method, 4))) == 4


def test_a_journal_survives_a_torn_line_and_refuses_other_terms(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"seeds": (0, 1)})
    journal.add({"key": "a", "accuracy": 0.5})
    with path.open("a") as file:
        file.write('{"key": "b", "accu')
    again = Journal(path, {"seeds": (0, 1)})
    assert "a" in again
    assert "b" not in again
    again.add({"key": "b", "accuracy": 0.75})
    assert Journal(path, {"seeds": (0, 1)})["b"]["accuracy"] == 0.75
    with pytest.raises(ValueError, match="other terms"):
        Journal(path, {"seeds": (0, 1, 2)})


def _double(value: float) -> dict[str, float]:
    return {"accuracy": 2 * value}


def test_tasks_run_once_and_none_begins_out_of_time(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", {})
    tasks = [Task(f"t/{i}", _double, (i,), 1.0) for i in range(3)]
    run(tasks[:2], journal, Clock(1.0, 0, planned=3.0), tmp_path / "log")
    assert journal["t/1"]["accuracy"] == 2
    run(tasks, journal, Clock(-1.0, 1, planned=3.0), tmp_path / "log")
    assert "t/2" not in journal


_FAMILY = """
import sys
from pathlib import Path
from benchmarks.papers.journal import Journal
from benchmarks.papers.schedule import Clock, Task, run
from tests.test_papers import _wait

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tasks = [Task(f"t/{i}", _wait, (folder / str(i),), 1.0) for i in range(2)]
    run(tasks, Journal(folder / "journal.jsonl", {}), Clock(5.0, 2, planned=0.0), folder / "log")
"""


def _wait(path) -> dict:
    """Tells its process and works on for a minute."""
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    time.sleep(60)
    return {}


def _is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:  # a zombie has ended
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "family.py"
    script.write_text(_FAMILY)
    path = os.pathsep.join(p or os.getcwd() for p in (os.getcwd(), *sys.path))
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    told = [tmp_path / "0", tmp_path / "1"]
    try:
        until = time.monotonic() + 50
        while not all(file.exists() for file in told) and time.monotonic() < until:
            time.sleep(0.05)
        workers = [int(file.read_text()) for file in told]
        assert all(map(_is_running, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    until = time.monotonic() + 10
    while any(map(_is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    left = [worker for worker in workers if _is_running(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


def test_the_whole_comparison_in_small(tmp_path):
    """Starts, builds, both trainers, measuring and the page; the ordering is not looked at."""
    regime = replace(
        REGIMES["main"],
        methods=("sft-own", "dpo", "step-dpo", "tdpo2"),
        extra=(("tdpo2", "dpo"),),
        habit=Habit(steps=16, batch_size=16, learning_rate=3e-4),
        questions=12,
        pairs=4,
        steps=2,
        batch_size=4,
    )
    size = Size(seeds=(0, 1), tuning_seeds=(9,), test=12, validation=8, along=8, points=1)
    comparison = Comparison((regime,), size, tmp_path / "work")
    journal = Journal(tmp_path / "journal.jsonl", comparison.terms())
    comparison.run(journal, Clock(10.0, 0, planned=0.0))
    kept = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    prepared = [line for line in kept if "/prepare/" in line.get("key", "")]
    assert len(prepared) == 3
    for line in prepared:
        assert line["kl"] == pytest.approx(0.0, abs=1e-6)
        for method, check in line["checks"].items():
            assert check["rows"] == check["sound"] == 4, method
    measured = [line for line in kept if "/measure/" in line.get("key", "")]
    assert all(line["kl"] > 0 for line in measured)
    page = tmp_path / "papers.md"
    assert page in write_page(comparison, journal, page)
    text = page.read_text()
    assert "| Step-DPO |" in text
    found = collect(comparison, regime, journal)
    lines = [verdict(claim, found) for claim in CLAIMS if claim.applies(found)]
    assert len(lines) == 5
    assert [line for line in text.splitlines() if "Published:" in line] == lines
    assert "has a lower KL than DPO in" in text
    before = len(journal.records)
    comparison.run(journal, Clock(10.0, 0, planned=0.0))
    assert len(journal.records) == before


def test_questions_have_right_answers_and_references(tmp_path):
    regime = replace(REGIMES["main"], questions=5)
    pairs.write_questions(regime, 0, tmp_path)
    questions = pairs.read_rows(tmp_path / "questions.jsonl")
    references = pairs.read_rows(tmp_path / "references.jsonl")
    for question, reference in zip(questions, references, strict=True):
        problem = world.parse_prompt(question["prompt"])
        assert question == {"prompt": problem.prompt, "answer": str(problem.answer)}
        assert world.check(problem, reference["response"]).all_steps_right
    chosen = [{"prompt": row["prompt"], "chosen": "x"} for row in questions[3:0:-1]]
    learnt = pairs.solutions(chosen, references)
    assert learnt["reference"] == references[3:0:-1]
    assert [row["response"] for row in learnt["own"]] == ["x"] * 3
