"""The small world: problems, splits and the step checker."""

import itertools
import random
import re

import pytest

from prefkit.demo import arithmetic as world
from prefkit.demo.lines import parse_answer


def independent_first_wrong(prompt: str, text: str) -> int | None:
    """The first line that is not the next operation with its value, by Python's own evaluation."""
    expression = prompt.rstrip("=\n")
    operations = re.findall(r"[+-]\d", expression)
    lines = text.split("\n")
    if lines.pop() != "":
        return len(lines)  # the last line has no line break
    done = expression[:2]
    for i, operation in enumerate(operations):
        value = eval(done + operation)
        if i >= len(lines) or lines[i] != f"{eval(done)}{operation}={value}":
            return i
        done += operation
    return len(operations) if len(lines) > len(operations) else None


def corrupt(solution: str, rng: random.Random) -> str:
    """One random edit: a character replaced or deleted, a line dropped, doubled or swapped."""
    lines = solution.splitlines(keepends=True)
    kind, i = rng.randrange(5), rng.randrange(len(lines))
    if kind == 0:
        at = rng.randrange(len(solution))
        return solution[:at] + rng.choice("0123456789+-=\n") + solution[at + 1 :]
    if kind == 1:
        at = rng.randrange(len(solution))
        return solution[:at] + solution[at + 1 :]
    if kind == 2:
        del lines[i]
    elif kind == 3:
        lines.insert(i, lines[i])
    else:
        lines[i], lines[i - 1] = lines[i - 1], lines[i]
    return "".join(lines)


def test_example_of_the_docstring():
    problem = world.parse_prompt("47+8-9+7-3+5-7=\n")
    assert problem.solution == "47+8=55\n55-9=46\n46+7=53\n53-3=50\n50+5=55\n55-7=48\n"
    assert problem.answer == 48
    assert parse_answer(problem.solution) == 48
    assert len(problem.prompt) == world.PROMPT_LENGTH
    assert len(problem.solution) == world.SOLUTION_LENGTH


def test_right_solutions_pass_the_independent_check():
    for problem in world.problems(300, "train", seed=3):
        assert independent_first_wrong(problem.prompt, problem.solution) is None
        assert problem.answer == eval(problem.prompt.rstrip("=\n"))
        assert all(10 <= total <= 99 for total in problem.totals)
        assert {len(line) for line in problem.lines} == {world.LINE_LENGTH}
        assert world.parse_prompt(problem.prompt) == problem
        assert world.check(problem, problem.solution).all_steps_right


def test_checker_agrees_with_the_independent_one_on_corrupted_solutions():
    rng = random.Random(0)
    wrong = 0
    for problem in world.problems(600, "train", seed=4):
        text = corrupt(problem.solution, rng)
        expected = independent_first_wrong(problem.prompt, text)
        assert world.check(problem, text).first_wrong == expected, (problem.prompt, text)
        wrong += expected is not None
    assert wrong > 400  # the edits do make mistakes


def test_a_right_answer_by_a_wrong_step_is_told_apart():
    problem = world.parse_prompt("47+8-9+1+1+1+1=\n")
    text = "47+8=45\n45-9=46\n46+1=47\n47+1=48\n48+1=49\n49+1=50\n"  # two mistakes that cancel
    verdict = world.check(problem, text)
    assert verdict.answer_right
    assert verdict.first_wrong == 0


@pytest.mark.parametrize("text", ["", "47", "47+8=", "47+8=55\n55-9", "no number\n"])
def test_no_answer_to_read(text):
    verdict = world.check(world.parse_prompt("47+8-9+7-3+5-7=\n"), text)
    assert verdict.answer is None
    assert not verdict.answer_right


@pytest.mark.parametrize("prompt", ["", "47+8=\n", "47+8-9+7-3+5-7=", "7+8-9+7-3+5-7=\n"])
def test_a_foreign_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="not a problem"):
        world.parse_prompt(prompt)


def test_splits_are_disjoint_whatever_the_seed():
    drawn = {
        split: set(itertools.chain.from_iterable(world.problems(400, split, s) for s in range(3)))
        for split in ("train", "validation", "held_out")
    }
    for one, other in itertools.combinations(drawn.values(), 2):
        assert not one & other
    assert all(p.split == split for split, found in drawn.items() for p in found)


def test_streams_repeat_and_hold_no_problem_twice():
    first = world.problems(500, "held_out", seed=7)
    assert first == world.problems(500, "held_out", seed=7)
    assert first != world.problems(500, "held_out", seed=8)
    assert len(set(first)) == 500


def test_unknown_split():
    with pytest.raises(ValueError, match="split must be one of"):
        world.problems(1, "test", seed=0)
