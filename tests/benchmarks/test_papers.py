"""The papers' comparison: statistics, its world, and the checker of pairs."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.papers import pairs, world
from benchmarks.papers.methods import REGIMES
from benchmarks.papers.start import LENGTH, Habit, draw_batch, make_tokenizer
from benchmarks.papers.statistics import interval, paired, t_cdf, t_quantile

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
    for problem in world.problems(20, "held_out", 3):
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
    drawn = {split: world.problems(200, split, 1) for split in ("train", "validation", "held_out")}
    texts = {split: {p.prompt for p in some} for split, some in drawn.items()}
    assert {len(some) for some in texts.values()} == {200}
    for ours, theirs in itertools.combinations(texts.values(), 2):
        assert not ours & theirs
    assert (
        drawn["held_out"]
        == world.problems(200, "held_out", 1)
        != world.problems(200, "held_out", 2)
    )


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
