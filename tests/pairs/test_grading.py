"""Is an answer found, and is it judged as a careful reader judges it, whatever a model writes?"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefkit.errors import ConfigError
from prefkit.pairs.grading.compare.equality import equal
from prefkit.pairs.grading.grader import Grader
from tests.pairs.hostile_answers import HOSTILE

pytest.importorskip("math_verify", reason="grading needs math-verify: pip install 'prefkit[build]'")
pytest.importorskip("pebble", reason="grading needs pebble: pip install 'prefkit[build]'")


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1, seconds=1.5) as made:
        assert made.grade("\\boxed{\\sqrt{8}}", "2\\sqrt{2}").correct  # its worker has started
        yield made


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
    start = time.process_time()
    assert equal(HOSTILE[name], "\\frac{x}{3}") is False
    assert time.process_time() - start < 2.0


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
    assert [grade.decided for grade in grades] == [True, True, True, False] * 5 + [False]
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
        assert [grade.decided for grade in grades] == [how == "function" for how in hows]
        assert grades[4].note == "RuntimeError: no"
        assert grader.grade("is yes", "yes").correct  # the pool is still well
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade("is yes", "yes")


TRIED = """
import time

def good(answer, gold):
    return answer == gold

def strict(answer, gold):
    return False

def raises(answer, gold):
    raise KeyError("units")

def one_argument(answer):
    return True

def perhaps(answer, gold):
    return "perhaps"

def nothing(answer, gold):
    pass

def sleeps(answer, gold):
    time.sleep(60)
"""


def test_a_function_is_tried_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tried_grader.py").write_text(TRIED)
    monkeypatch.syspath_prepend(str(tmp_path))
    bad = {
        "raises": "KeyError: 'units'",
        "one_argument": "takes 1 positional argument",
        "perhaps": "it gave 'perhaps', not True or False",
        "nothing": "it gave None",
        "sleeps": "more than 0.7 s",
    }
    for name, said in bad.items():
        with Grader(1, 0.7, function=f"tried_grader:{name}") as grader:
            with pytest.raises(ConfigError, match="fails on the right answer '72'") as found:
                grader.try_out("72")
            assert said in str(found.value)
            assert f"tried_grader:{name}" in str(found.value)
    for name in ("good", "strict"):  # whether it is wise is the user's business
        with Grader(1, 0.7, function=f"tried_grader:{name}") as grader:
            grader.try_out("72")
            assert grader.grade("#### 72", "72").correct is (name == "good")


def test_a_pattern_that_never_ends_is_stopped() -> None:
    with Grader(1, 0.7, "regex:(a+)+$") as grader:
        grade = grader.grade("a" * 60 + "b", "1")
    assert (grade.correct, grade.answer, grade.how) == (False, None, "timeout")
    assert not grade.decided


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
