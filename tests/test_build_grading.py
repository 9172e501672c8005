"""Is an answer found, and is it judged as a careful reader judges it, whatever a model writes?"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefkit.build.grading.answers import final_answer
from prefkit.build.grading.equality import equal
from prefkit.build.grading.grader import Grader
from prefkit.errors import ConfigError

pytest.importorskip("math_verify", reason="grading needs math-verify: pip install 'prefkit[build]'")
pytest.importorskip("pebble", reason="grading needs pebble: pip install 'prefkit[build]'")

PAIRS = Path(__file__).parent / "data" / "graded_answers.jsonl"

HOSTILE = {
    "power tower": "9**9**9",
    "power tower in LaTeX": "9^{9^{9^{9}}}",
    "towers with spaces": "9 ^ { 9 ^ { 9 ^ 9 } }",
    "huge exponent": "2^{999999999}",
    "negative huge exponent": "2^{-999999999}",
    "scientific": "1e999999999",
    "digits": "7" * 1_000_000,
    "digits with commas": "7," * 500_000,
    "brackets": "(" * 100_000,
    "closed brackets": "(" * 5000 + "1" + ")" * 5000,
    "fractions": "\\frac{" * 50_000,
    "closed fractions": "\\frac{" * 300 + "1" + "}{2}" * 300,
    "roots": "\\sqrt{" * 200 + "2" + "}" * 200,
    "boxes": "\\boxed{" * 100_000,
    "code": "__import__('os').system('touch HERE')",
    "more code": "().__class__.__bases__[0].__subclasses__()",
    "evaluated code": "exec('raise SystemExit')",
    "factorial": "99999999999!",
    "factorials": "((9!)!)!",
    "binomial": "\\binom{999999999}{499999999}",
    "sum": "\\sum_{n=1}^{99999999999} n^{n}",
    "integral": "\\int_0^1 e^{e^{e^{x}}} dx",
    "limit": "\\lim_{x\\to 0} \\frac{\\sin(x)^{99}}{x^{99}}",
    "polynomial power": "(x+y+z+w+v)^{9999}",
    "powers of powers": "((((((2^{99})^{99})^{99})^{99})^{99})^{99})^{99}",
    "many plus-minus": "\\pm 1 " * 90,
    "set of a thousand": "\\{" + ",".join(map(str, range(1000))) + "\\}",
    "nulls": "\x00" * 1000,
    "spaces": " " * 1_000_000 + "1",
    "minus signs": "-" * 400 + "1",
    "surrogates and marks": "\u202e\u0301" * 200,
    "system of functions": "\\sin(" * 12 + "x" + ")" * 12 + "^{9999}",
}


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1, seconds=1.5) as made:
        assert made.grade("\\boxed{\\sqrt{8}}", "2\\sqrt{2}").correct  # its worker has started
        yield made


def test_pairs_are_judged_as_by_hand() -> None:
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 220
    assert 0.5 < sum(row["equal"] for row in rows) / len(rows) < 0.7
    wrong = [row for row in rows if equal(row["answer"], row["gold"]) != row["equal"]]
    print(f"{len(rows) - len(wrong)} of {len(rows)} right; wrong: {wrong}")
    assert len(wrong) <= 0.01 * len(rows), wrong


def test_every_right_answer_equals_itself() -> None:
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    assert all(equal(row["gold"] + " ", row["gold"]) for row in rows)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_end_in_time(grader: Grader, name: str, tmp_path: Path) -> None:
    text = HOSTILE[name].replace("HERE", str(tmp_path / "made"))
    for solution, gold in ((text, "4"), (f"\\boxed{{{text}}}", "\\frac{x}{3}")):
        start = time.perf_counter()
        assert not grader.grade(solution, gold).correct
        assert time.perf_counter() - start < 2.0
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_do_not_even_need_the_limit(name: str) -> None:
    start = time.perf_counter()
    assert equal(HOSTILE[name], "\\frac{x}{3}") is False
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize(
    ("text", "how", "answer"),
    [
        ("a\n#### 72", "auto", "72"),
        ("so \\boxed{\\frac{1}{2}} it is 7", "auto", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{\\{1, 2\\}}", "boxed", "\\{1, 2\\}"),
        ("\\boxed{5} and \\boxed{6", "auto", "5"),
        ("9 * 2 = $<<9*2=18>>18\nA: 18", "auto", "18"),
        ("The answer is 18 dollars a day.", "auto", "18"),
        ("**Answer:** 5", "auto", "5"),
        ("The answer is $\\frac{1}{2}$.", "auto", "$\\frac{1}{2}$"),
        ("47+8=55\n55-9=46\n", "auto", "46"),
        ("He pays 9 * 2 = $<<9*2=18>>18 every day", "auto", "$18"),
        ("There are 5 apples and 7 pears.", "auto", "7"),
        ("It is 5-3.", "last_number", "3"),
        ("nothing", "auto", None),
        ("", "auto", None),
        ("\\boxed{}", "boxed", None),
        ("no box 5", "boxed", None),
        ("x = <5> or <6>", "regex:<(\\d)>", "6"),
        ("none", "regex:<(\\d)>", None),
    ],
)
def test_answers_are_found(text: str, how: str, answer: str | None) -> None:
    assert final_answer(text, how) == answer


@pytest.mark.parametrize("how", ["box", "regex:", "regex:(", ""])
def test_a_bad_way_is_refused(how: str) -> None:
    with pytest.raises(ConfigError, match="answer is"):
        Grader(answer=how)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("os", "module:function"),
        ("no.such.module:f", "cannot be imported"),
        ("os:no_such_function", "cannot be imported"),
        ("os:sep", "not a function"),
    ],
)
def test_a_bad_function_is_refused_before_anything_runs(function: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Grader(function=function)


def test_order_and_verdicts_of_many(grader: Grader) -> None:
    items = [("x\n#### 1", "1"), ("#### 2", "1"), ("\\boxed{0.5}", "\\frac12"), ("", "1")] * 5
    grades = grader.grade_many([*items, ("no answer here", "1")])
    assert [grade.correct for grade in grades] == [True, False, True, False] * 5 + [False]
    assert [grade.how for grade in grades[:4]] == ["exact", "integer", "function", "none"]
    assert grader.grade("A: 18", "so it is\n#### 18").correct  # the right answer as a solution


OWN = """
import os, time

def grade(answer, gold):
    if answer == "sleep":
        time.sleep(60)
    if answer == "crash":
        os._exit(3)
    if answer == "raise":
        raise RuntimeError("no")
    if answer == "memory":
        hoard = "x" * (8 << 30)
    return answer.lower() == gold.lower()
"""


def test_own_functions_may_sleep_crash_and_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_grader.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["Yes", "sleep", "no", "crash", "raise", "memory", "yes"]
    with Grader(1, 0.7, "regex:is (\\w+)", "own_grader:grade") as grader:
        grades = grader.grade_many([(f"it is {word}", "YES") for word in words])
        assert [grade.correct for grade in grades] == [True, *[False] * 5, True]
        hows = ["function", "timeout", "function", "error", "error", "error", "function"]
        assert [grade.how for grade in grades] == hows
        assert grader.grade("is yes", "yes").correct  # the pool is still well
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade("is yes", "yes")


def test_a_pattern_that_never_ends_is_stopped() -> None:
    with Grader(1, 0.7, "regex:(a+)+$") as grader:
        grade = grader.grade("a" * 60 + "b", "1")
    assert (grade.correct, grade.answer, grade.how) == (False, None, "timeout")


def test_threads_share_a_grader(grader: Grader) -> None:
    found: dict[int, list[bool]] = {}

    def work(number: int) -> None:
        items = [(f"\\boxed{{{number}/{k}}}", f"\\frac{{{number}}}{{{k}}}") for k in range(2, 12)]
        grades = grader.grade_many([*items, (f"\\boxed{{{number}.5}}", str(number))])
        found[number] = [grade.correct for grade in grades]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == {number: [True] * 10 + [False] for number in range(1, 9)}
