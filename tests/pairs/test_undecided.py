"""Right, wrong or undecided: whole solutions against right answers, as a careful reader would."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefkit.pairs.grading.grader import Grader
from prefkit.pairs.grading.verdicts import UNDECIDED

pytest.importorskip("math_verify", reason="grading needs math-verify: pip install 'prefkit[build]'")
pytest.importorskip("pebble", reason="grading needs pebble: pip install 'prefkit[build]'")

SOLUTIONS = Path(__file__).parent / "graded_solutions.jsonl"
RIGHT = [
    ("$\\dfrac{1}{3}$", "\\frac{1}{3}"),
    ("The domain is $[0,1)$.", "[0,1)"),
    ("$x \\geq 5$", "[5,\\infty)"),
    (
        "$\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}$",
        "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}",
    ),
    ("Final Answer: The final answer is $(1,4)$. I hope it is correct.", "(1,4)"),
    ("<think>maybe \\boxed{5}</think> The answer is 7.", "7"),
    ("maybe \\boxed{5}</think>The answer is 7.", "7"),
    ("\\boxed{1} and \\boxed{2}", "\\{2, 1\\}"),
    ("$10,\\!080$", "10080"),
    ("\\boxed{10 {, }080}", "10,080"),
    ("The solutions are $x=3$ and $x=-3$.", "-3, 3"),
    ("\\boxed{1-\\frac{1}{\\mathrm{e}}}", "1-e^{-1}"),
    ("\\boxed{(-\\infty,3)\\cup(5,\\infty)}", "(5,\\infty)\\cup(-\\infty,3)"),
    ("\\boxed{x^2+y^2=1}", "1-x^2=y^2"),
    ("\\boxed{\\frac{1\\pm\\sqrt5}{2}}", "\\frac{1-\\sqrt5}{2},\\frac{1+\\sqrt5}{2}"),
    ("\\boxed{x \\ne 3}", "x != 3"),
    ("It is 1000,99 in all", "1000.99"),
    ("\\boxed{6:4}", "3:2"),
    ("\\boxed{1 = x = 0}", "0"),
    ("The answer is (B).", "\\text{(B)}"),
    ("It is 5.", "Since $2+3=5$, the answer is \\boxed{5} cm."),  # a solution as right answer
    ("\\boxed{2,3}", "$2$ and $3$"),
]
WRONG = [
    ("$\\dfrac{1}{3}$", "3"),
    ("$[0,1)$", "1"),
    ("$[0,1)$", "[0,1]"),
    ("$x \\geq 5$", "5"),
    ("$\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}$", "4"),
    ("The final answer is $(1,4)$. I hope it is correct.", "(4,1)"),
    ("The final answer is $(1,4)$. I hope it is correct.", "4"),
    ("<think>maybe \\boxed{5}</think> The answer is 7.", "5"),
    ("\\boxed{1} and \\boxed{2}", "3"),
    ("The solutions are $x=3$ and $x=-3$.", "5"),
    ("\\boxed{1+\\frac{1}{\\mathrm{e}}}", "1-\\frac{1}{\\mathrm{e}}"),  # math-verify: equal
    ("\\boxed{\\frac{1}{2^{99}}}", "\\frac{1}{2^{98}}"),  # math-verify: equal
    ("\\boxed{\\{1,2\\}}", "(1,2)"),  # math-verify: equal
    ("\\boxed{11010_2}", "11010_3"),  # math-verify: equal
    ("The answer is $5$ cm.", "5 m"),  # math-verify: equal
    ("\\boxed{1:00}", "12:00"),
    ("\\boxed{0." + "3" * 700 + "}", "8"),
    ("\\boxed{\\text{Evelyn}}", "Carla"),
    ("\\boxed{\\text{no solution}}", "5"),
    ("\\boxed{10\\;\\text{edges}}", "\\begin{pmatrix} 4 & 2 \\\\ -1 & 1 \\end{pmatrix}"),
    ("He has 18 dollars in 7 days.", "5"),
]
OPEN = [
    ("\\boxed{5} or rather \\boxed{6", "5", "none"),
    ("\\boxed{5} or rather \\boxed{}", "5", "none"),
    ("I do not know.", "5", "none"),
    ("<think>maybe \\boxed{5}", "5", "thought"),
    ("It is 5. <think>Or 6", "5", "thought"),
    ("He has 18 dollars in 7 days.", "18", "unclear"),
    ("The maximum is $12$ at $x=3$.", "12", "unclear"),
    ("\\boxed{1}, \\boxed{2}", "2", "unclear"),
    ("\\boxed{5}. The final answer is $6$.", "5", "unclear"),
    ("With $y=7$ we have $x=5$ and so 12 of them", "5", "disagree"),
    ("\\boxed{10x-4y-5z-20=0}", "0", "disagree"),
    ("\\boxed{4210}", "4210_7", "unread"),
    ("\\boxed{\\text{about three}}", "3", "unread"),
    ("\\boxed{\\text{no solution}}", "\\emptyset", "unread"),
    ("\\boxed{\\text{parabola}}", "\\text{(D)}", "unread"),
    ("\\boxed{\\lim_{x\\to 0} x}", "0", "unread"),
    ("\\boxed{5!}", "120", "refused"),
    ("\\boxed{" + "1+" * 400 + "1}", "401", "refused"),
]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=2, seconds=30.0) as made:
        yield made


def test_right_wrong_and_undecided(grader: Grader) -> None:
    expected = [(True, "")] * len(RIGHT) + [(False, "")] * len(WRONG)
    expected += [(False, how) for *_, how in OPEN]
    cases = [(text, gold) for text, gold, *_ in [*RIGHT, *WRONG, *OPEN]]
    grades = grader.grade_many(cases)
    given = [(grade.correct, "" if grade.decided else grade.how) for grade in grades]
    differing = [
        (case, grade)
        for case, grade, a, b in zip(cases, grades, given, expected, strict=True)
        if a != b
    ]
    assert not differing


def test_solutions_are_judged_as_by_hand(grader: Grader) -> None:
    """Marks that are headings, parts of something, corrections, choices, words, roundings."""
    rows = [json.loads(line) for line in SOLUTIONS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 200
    grades = grader.grade_many([(row["solution"], row["gold"]) for row in rows])
    given = [
        grade.how if not grade.decided else "right" if grade.correct else "wrong"
        for grade in grades
    ]
    differing = [(row, a) for row, a in zip(rows, given, strict=True) if row["verdict"] != a]
    assert not differing
    shown = {row["verdict"] for row in rows} | {how for *_, how in OPEN}
    assert shown - {"right", "wrong"} == set(UNDECIDED) - {"timeout", "error"}


@pytest.mark.shared
def test_answers_of_math_in_every_form_and_no_other_one(grader: Grader, shared_data: Path) -> None:
    """A sample of what `python -m benchmarks.answer_verdicts forms` prints in full."""
    from benchmarks.answer_verdicts import FORMS, rows_of, shuffled

    rows = rows_of(shared_data / "math" / "math500.jsonl")
    answers = [answer for answer, _ in rows]
    drawn = random.Random(0).sample(list(zip(rows, shuffled(answers, 0), strict=True)), 40)
    cases = [
        ((front + form(stated), answer), stated == answer)
        for form in FORMS.values()
        for (answer, front), other in drawn[:24]
        for stated in (answer, other)
    ]
    grades = grader.grade_many([case for case, _ in cases])
    pairs = list(zip(cases, grades, strict=True))
    assert not [pair for pair in pairs if pair[1].correct and not pair[0][1]]
    missed = [pair for pair in pairs if pair[0][1] and not pair[1].correct]
    assert not missed
    assert sum(not grade.decided for grade in grades) <= 0.005 * len(grades)


@pytest.mark.shared
def test_real_solutions_of_gsm8k_are_decided_as_labelled(grader: Grader, shared_data: Path) -> None:
    from benchmarks.localiser_gsm8k import read

    solutions = list(read(shared_data / "gsm8k" / "model_solutions.jsonl"))[:800]
    grades = grader.grade_many([(s.text, s.truth.rpartition("A:")[2]) for s in solutions])
    assert [grade.correct for grade in grades] == [solution.right for solution in solutions]
    undecided = [s.name for s, g in zip(solutions, grades, strict=True) if not g.decided]
    # Cut off in a calculation or a number: "For the thirteenth glass Kylar needs to pay 5 * 1".
    places = ("5, 175b", "150, 6b", "162, 175b")
    assert undecided == [f"question {place}_finetuning" for place in places]


def test_a_table_of_cases_is_read_from_parametrised_tests(tmp_path: Path) -> None:
    from benchmarks.math_verify_tables import cases, kind_of

    folder = tmp_path / "its_tests"
    folder.mkdir()
    rows = [("$1$", "1", 1), ("$1$", "1", 1), ("$1$", "2", 0), ("$3$", "4", 0), ("$3$", "4", 1)]
    (folder / "__init__.py").touch()
    (folder / "test_one.py").write_text(
        "import pytest\n"
        f"@pytest.mark.parametrize('gold, pred, expected', {json.dumps(rows)})\n"
        "def test_it(gold, pred, expected): ...\n"
        "@pytest.mark.parametrize(['gold', 'pred', 'expected', 'precision'], [('5', '6', 1, 2)])\n"
        "def test_loosely(gold, pred, expected, precision): ...\n"
    )
    found = cases(folder)
    assert [(case.gold, case.predicted, case.equal) for case in found] == [
        ("$1$", "1", True),
        ("$1$", "2", False),
    ]
    with Grader(workers=1) as grader:
        grades = [grader.grade(case.predicted, case.gold) for case in found]
    assert [kind_of(case, grade) for case, grade in zip(found, grades, strict=True)] == [
        "agrees",
        "agrees",
    ]
