"""Questions that are an expression: every step has one right form, or the general rules judge."""

import random

import pytest

from prefkit.demo import arithmetic as world
from prefkit.pairs.localise.expression.question import is_plain
from prefkit.pairs.localise.program.locate import locate
from prefkit.pairs.steps import split_steps


def corrupted(problem: world.Problem, rng: random.Random) -> str:
    """A solution with up to three faults of the kinds that models make."""
    lines = list(problem.lines)
    for _ in range(rng.randint(0, 3)):
        place = rng.randrange(len(lines))
        kind = rng.choice(["digit", "drop", "repeat", "sign", "surplus", "swap", "carry"])
        if kind == "digit":
            at = rng.choice([i for i, c in enumerate(lines[place]) if c.isdigit()])
            lines[place] = lines[place][:at] + str(rng.randrange(10)) + lines[place][at + 1 :]
        elif kind == "drop" and len(lines) > 1:
            lines.pop(place)
        elif kind == "repeat":
            lines.insert(place, lines[place])
        elif kind == "sign":
            lines[place] = lines[place].translate(str.maketrans("+-", "-+"))
        elif kind == "surplus":
            lines.append(lines[place])
        elif kind == "swap":
            other = rng.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        elif kind == "carry":
            left, _, right = lines[place].partition("=")
            lines[place] = f"{left}={int(right) + rng.choice((-10, 10))}\n"
    return "".join(lines)


def test_program_agrees_with_the_truth_of_the_tiny_world() -> None:
    rng = random.Random(0)
    found = {True: 0, False: 0}
    for problem in world.problems(2000, "train", 0):
        for _ in range(2):
            text = corrupted(problem, rng)
            truth = world.check(problem, text).first_wrong
            verdict = locate(problem.prompt, split_steps(text, "lines"))
            assert verdict.step == truth, (problem.prompt, text, verdict)
            found[truth is None] += 1
    assert found[True] > 500
    assert found[False] > 2000


def test_long_expressions_and_brackets() -> None:
    rng = random.Random(1)
    for count in range(12, 21):
        terms = [rng.randint(1, 9) * rng.choice((1, -1)) for _ in range(count)]
        total, steps = 50, []
        for term in terms:
            steps.append(f"{total}{term:+d}={total + term}\n")
            total += term
        question = f"50{''.join(f'{term:+d}' for term in terms)}=\n"
        assert locate(question, steps).step is None
        at = rng.randrange(count)
        left, _, right = steps[at].partition("=")
        wrong = [*steps[:at], f"{left}={int(right) + 10}\n", *steps[at + 1 :]]
        assert locate(question, wrong).step == at
    assert locate("(3+4)*2-10/4 = ?", ["3+4=7", "7*2=14", "10/4=2.5", "14-2.5=11.5"]).step is None
    assert locate("(3+4)*2", ["3+4=7", "7*2=15"]).step == 1
    assert locate("(3+4)*2", ["3+4=7"]).step == 1  # a step is missing


# ------------------------------------------------------------------------- not written as expected

EXPRESSION = "27-5+3-7=\n"
RIGHT = "27-5=22\n22+3=25\n25-7=18\n"
LABELLED = ["Step 1: 27-5=22\n", "Step 2: 22+3=25\n", "Step 3: 25-7=18\n"]
BACKWARDS = [">\n", "27-7=20\n", "20+3=23\n", "23-5=18\n"]


@pytest.mark.parametrize("solution", [None, RIGHT])
@pytest.mark.parametrize(
    "steps",
    [[RIGHT], LABELLED, BACKWARDS, ["<\n", *BACKWARDS[1:]], ["I go left to right.\n", RIGHT],
     [*RIGHT.splitlines(keepends=True), "A: 18"], ["First 27-5=22\n", "5+7=12\n", "30-12=18\n"]],
)  # fmt: skip
def test_right_solutions_of_any_form_are_left_alone(steps: list[str], solution: str | None) -> None:
    assert locate(EXPRESSION, steps, solution=solution).step is None


@pytest.mark.parametrize("solution", [None, RIGHT])
@pytest.mark.parametrize(
    ("steps", "wrong", "said"),
    [
        (["27-5=22\n22+3=26\n26-7=19\n"], 0, "22+3=26 (certain)"),
        ([LABELLED[0], "Step 2: 22+3=26\n", "Step 3: 26-7=19\n"], 1, "22+3=26 (certain)"),
        ([LABELLED[0], "Step 2: 22-3=19\n", "Step 3: 19-7=12\n"], 1, "(likely)"),
        ([*BACKWARDS[:2], "20+3=24\n", "24-5=19\n"], 2, "20+3=24 (certain)"),
        ([*BACKWARDS[:2], "20-3=17\n", "17-5=12\n"], 2, "(likely)"),
        ([LABELLED[0], "Step 2: 22+3=2"], 1, "cut off"),
        (["27-5=22\n", "22+3=2"], 1, "cut off"),
        (["27-5=22\n", "22+3="], 1, "cut off"),
        (["27-5=22\n", "22+3=2\n"], 1, "(certain)"),
        (["27-5=22\n", "22+3=25\n"], 2, "missing (certain)"),
        (["27-5=22\n", "22+3=25\n", "#### 18"], 2, "missing (likely)"),
        ([*RIGHT.splitlines(keepends=True), "#### 81"], 3, "(likely)"),
        (BACKWARDS[1:], 0, "(likely)"),
    ],
)
def test_wrong_steps_of_any_form_are_found(
    steps: list[str], wrong: int, said: str, solution: str | None
) -> None:
    verdict = locate(EXPRESSION, steps, solution=solution)
    assert verdict.step == wrong
    assert said in verdict.reason


def test_long_expressions_are_followed_in_any_order() -> None:
    rng = random.Random(2)
    for _ in range(20):
        terms = [rng.randint(1, 9) * rng.choice((1, -1)) for _ in range(14)]
        steps, total = [">\n"], 90
        for term in reversed(terms):
            steps.append(f"{total}{term:+d}={total + term}\n")
            total += term
        question = f"90{''.join(f'{term:+d}' for term in terms)}=\n"
        assert locate(question, steps).step is None
        at = rng.randrange(1, 15)
        left, _, right = steps[at].partition("=")
        steps[at] = f"{left}={int(right) + 10}\n"
        verdict = locate(question, steps)
        assert verdict.step == at
        assert "(certain)" in verdict.reason


def test_bare_calculations_are_told_from_words() -> None:
    lines = RIGHT.splitlines(keepends=True)
    assert is_plain(lines)
    assert is_plain([*lines, "A: 18"])
    assert not is_plain([RIGHT])
    assert not is_plain(LABELLED)
    assert not is_plain(BACKWARDS)
    assert not is_plain([lines[0], f"then {lines[1]}", lines[2]])
    assert not is_plain([])
