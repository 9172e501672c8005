"""Option `pairs`: all pairs of a question, and rows of several rejected solutions."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from prefkit.data import prepare_pairs
from prefkit.data.groups import group_numbers
from prefkit.errors import ConfigError
from prefkit.pairs.engines.base import Request
from prefkit.pairs.grading.grader import Grader
from prefkit.pairs.pipelines.dpo import dpo
from prefkit.pairs.pipelines.finding import Finder
from prefkit.pairs.pipelines.outcome import Outcome
from prefkit.pairs.pipelines.scdpo import scdpo
from prefkit.pairs.pipelines.step_dpo import step_dpo
from prefkit.pairs.run.options import resolved
from tests.data.data_cases import character_tokenizer
from tests.pairs.build_cases import drive, make_context, question
from tests.pairs.test_pipelines import in_turn, number

GIVEN = {"questions": "q", "model": "m", "out": "o"}
TEXTS = ["so 42", "so 41", "thus 42", "hence 40", "and 39", "no end…", "so 41", "who knows"]
RIGHT, WRONG = ["so 42", "thus 42"], ["so 41", "hence 40", "and 39"]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1) as found:
        yield found


def solve(grader: Grader, **options: Any) -> Outcome:
    context = make_context("dpo", grader, samples=len(TEXTS), **options)
    return drive(dpo(question(), context), in_turn(*TEXTS))[0]


# --------------------------------------------------------------------------------------------- dpo


def test_all_pairs_are_every_right_with_every_wrong_solution(grader: Grader) -> None:
    outcome = solve(grader, pairs="all")
    pairs = [(row["chosen"], row["rejected"]) for row in outcome.rows]
    assert sorted(pairs) == sorted((good, bad) for good in RIGHT for bad in WRONG)
    assert len({row["id"] for row in outcome.rows}) == 6
    assert outcome.drops["pairs: beyond pairs_per_question"] == 0


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_limit_keeps_first_what_one_pair_each_would_be(grader: Grader, most: int) -> None:
    every, some = solve(grader, pairs="all"), solve(grader, pairs="all", pairs_per_question=most)
    assert some.rows == every.rows[:most]
    assert some.drops["pairs: beyond pairs_per_question"] == 6 - most
    one = solve(grader, pairs="one", pairs_per_question=2)
    assert one.rows == every.rows[:2]
    assert len(solve(grader).rows) == 1


def test_several_is_a_row_a_right_solution_that_training_reads(grader: Grader) -> None:
    outcome = solve(grader, pairs="several")
    assert [row["chosen"] for row in outcome.rows] == RIGHT
    assert all(row["rejected"] == WRONG for row in outcome.rows)
    assert outcome.rows[0]["rejected_steps"] == [["so 41"], ["hence 40"], ["and 39"]]
    assert [row["id"] for row in outcome.rows] == ["q-0", "q-2"]
    pairs = prepare_pairs(outcome.rows, character_tokenizer()).pairs
    assert group_numbers(pairs).tolist() == [0, 0, 0, 1, 1, 1]


# ------------------------------------------------------------------------------------------- scdpo

LINES = "2+3=5\n5+4=9\n9+33=42"


def go_wrong(grader: Grader, fault: bool = False, **options: Any) -> Outcome:
    """From the second line on: still right by another way, then wrong; from the first: wrong."""
    ways = {1: ["5+4=8\n8+33=41"], 2: ["33+9=42", "9+33=43"]}

    def write(request: Request) -> tuple[str, str]:
        if "/solution/" in request.key:
            return [(LINES, "end"), ("it is 1", "end"), ("2+3=5\n4+5=9\n9+33=42", "end")][
                number(request)
            ]
        *_, turn, index = request.key.split("/")
        return ways[int(index)][int(turn)], "end"

    finder = Finder("tests.pairs.test_all_pairs:second_way", "function", 1) if fault else None
    context = make_context("scdpo", grader, finder=finder, samples=3, **options)
    return drive(scdpo(question(), context), write)[0]


def second_way(_: str, steps: list[str], __: str | None) -> int | None:
    return len(steps) - 1 if steps[-1] == "33+9=42" else None


def controlled(outcome: Outcome) -> set[tuple[str, str, str]]:
    rows = [row for row in outcome.rows if row["kind"] == "step-controlled"]
    assert len({row["id"] for row in outcome.rows}) == len(outcome.rows)
    return {(row["prefix"], row["chosen"], row["rejected"]) for row in rows}


def test_all_pairs_of_a_front_have_every_right_way_on(grader: Grader) -> None:
    one = ("2+3=5\n", "5+4=9\n9+33=42", "5+4=8\n8+33=41")
    other = ("2+3=5\n5+4=9\n", "9+33=42", "9+33=43")
    limit = {"wrong_per_question": 2}
    assert controlled(go_wrong(grader, **limit)) == {one, other}
    of_solution = (one[0], "4+5=9\n9+33=42", one[2])
    of_continuation = (other[0], "33+9=42", other[2])
    outcome = go_wrong(grader, pairs="all", **limit)
    assert controlled(outcome) == {one, other, of_solution, of_continuation}
    assert outcome.drops["continuations: still right"] == 0
    naive = [row for row in outcome.rows if row["kind"] == "naive"]
    assert [(row["chosen"], row["rejected"]) for row in naive] == [
        (LINES, "it is 1"),
        ("2+3=5\n4+5=9\n9+33=42", "it is 1"),
    ]
    filtered = go_wrong(grader, fault=True, pairs="all", **limit)
    assert controlled(filtered) == {one, other, of_solution}
    assert filtered.drops["continuations: right answer by a wrong step"] == 1


# ---------------------------------------------------------------------------------------- step-dpo

# The first line is wrong in "a" and "b"; the second in "r\nx"; the third in "r\ns\ny".
WRONG_STEPS = {"a", "b", "x", "y"}


def first_bad(_: str, steps: list[str], __: str | None) -> int | None:
    return next((i for i, step in enumerate(steps) if step.strip() in WRONG_STEPS), None)


def tree(grader: Grader, written: dict[str, list[str]], **options: Any) -> tuple[Outcome, Any]:
    """Writes after each text of steps what is given for it, in turn, and nothing further."""

    def write(request: Request) -> tuple[str, str]:
        if "/solution/" in request.key:
            texts = written["solutions"]
        else:
            texts = written.get(request.text.removeprefix(question().text), [])
        place = number(request)
        return (texts[place], "end") if place < len(texts) else ("who knows", "end")

    finder = Finder("tests.pairs.test_all_pairs:first_bad", "none", 1)
    context = make_context(
        "step-dpo", grader, finder=finder, samples=len(written["solutions"]), **options
    )
    return drive(step_dpo(question(), context), write)


WRITTEN = {
    "solutions": ["a\nso 41", "b\nso 40"],
    "": ["r\nso 42", "r\nx\nso 40", "q\nso 42", "a\nso 39", "b\nso 38", "r\nso 42"],
    "r\n": ["s\nso 42", "s\ny\nso 37", "x\nso 36", "a\nso 35"],
    "r\ns\n": ["t\nso 42", "y\nso 3"],
}
TREE = {
    *{("", good, bad) for good in ("r\n", "q\n") for bad in ("a\n", "b\n")},
    *{("r\n", "s\n", bad) for bad in ("x\n", "a\n")},
    ("r\ns\n", "t\n", "y\n"),
}


def steps_of(outcome: Outcome) -> list[tuple[str, str, str]]:
    return [(row["prefix"], row["chosen"], row["rejected"]) for row in outcome.rows]


def test_all_step_pairs_are_found_at_every_wrong_step(grader: Grader) -> None:
    outcome, asked = tree(grader, WRITTEN, pairs="all", rectifications=6)
    found = steps_of(outcome)
    assert len(found) == len(set(found))
    assert set(found) == TREE
    assert len({row["id"] for row in outcome.rows}) == len(found)
    deep = next(row for row in outcome.rows if row["prefix"] == "r\ns\n")
    assert deep["full_chosen"] == "t\nso 42"
    assert deep["full_rejected"] == "y\nso 37"
    assert deep["prefix_steps"] == ["r\n", "s\n"]
    keys = [request.key for requests in asked for request in requests]
    assert len(set(keys)) == len(keys)
    drops = +Counter(outcome.drops)
    assert drops["rectifications: wrong by a step seen before"] == 4  # a, b; x; y
    assert outcome.counts["mistakes located"] == 5
    assert outcome.counts["rectifications sampled"] == 18


def test_the_same_questions_and_answers_give_the_same_tree(grader: Grader) -> None:
    first, second = (tree(grader, WRITTEN, pairs="all", rectifications=6) for _ in range(2))
    assert first[0].as_json() == second[0].as_json()
    assert first[1] == second[1]


@pytest.mark.parametrize(
    ("most", "located", "left"), [(1, 1, 3), (2, 2, 1), (3, 3, 2), (4, 4, 1), (5, 5, 0)]
)
def test_mistakes_per_question_bounds_what_is_read(
    grader: Grader, most: int, located: int, left: int
) -> None:
    outcome, _ = tree(grader, WRITTEN, pairs="all", rectifications=6, mistakes_per_question=most)
    assert outcome.counts["mistakes located"] == located
    assert outcome.counts["rectifications sampled"] <= 6 * most
    assert outcome.drops["mistakes: beyond mistakes_per_question"] == left
    assert set(steps_of(outcome)) <= TREE


def test_pairs_per_mistake_bounds_the_right_steps(grader: Grader) -> None:
    outcome, _ = tree(grader, WRITTEN, pairs="all", rectifications=6, pairs_per_mistake=1)
    assert Counter(steps_of(outcome)).keys() == {pair for pair in TREE if pair[1] != "q\n"}


def test_one_pair_a_mistake_is_the_default(grader: Grader) -> None:
    outcome, _ = tree(grader, WRITTEN, rectifications=6)
    assert steps_of(outcome) == [("", "r\n", "a\n"), ("", "r\n", "b\n")]


def test_nothing_is_claimed_against_what_was_read_before(grader: Grader) -> None:
    """A step that came out right and is called wrong elsewhere, and one called wrong too early."""
    written = {
        "solutions": ["r\na\nso 41"],
        "r\n": ["s\nso 42", "s\nso 40", "t\nso 42", "e\nso 39"],
    }

    def write(request: Request) -> tuple[str, str]:
        texts = written["solutions" if "/solution/" in request.key else "r\n"]
        place = number(request)
        return (texts[place], "end") if place < len(texts) else ("who knows", "end")

    finder = Finder("tests.pairs.test_all_pairs:fickle", "none", 1)
    context = make_context("step-dpo", grader, finder=finder, samples=1, pairs="all")
    outcome, _ = drive(step_dpo(question(), context), write)
    assert steps_of(outcome) == [("r\n", "t\n", "a\n"), ("r\n", "t\n", "s\n")]
    assert outcome.drops["rectifications: a step that is called wrong"] == 1
    assert outcome.drops["mistakes: in steps that were read as right before"] == 1


def fickle(_: str, steps: list[str], __: str | None) -> int | None:
    return 0 if steps[1].strip() == "e" else 1


# ----------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("cdpo", {"pairs": "all"}, "pairs has no effect on cdpo: it belongs to dpo and step-dpo"),
        ("evaluate", {"pairs": "all"}, "pairs has no effect on evaluate"),
        ("scdpo", {"pairs": "several"}, "several has no effect on scdpo: it belongs to dpo"),
        ("step-dpo", {"pairs": "several"}, "several has no effect on step-dpo"),
        ("dpo", {"pairs": "several", "pairs_per_question": 2}, "pairs_per_question has no effect"),
        ("dpo", {"pairs": "some"}, "pairs is 'some'; it must be one of one, all, several"),
    ],
)
def test_what_a_method_has_no_choice_of_is_refused(
    method: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(method, {**GIVEN, **given})


def test_limits_that_are_left_out_follow_the_pairs() -> None:
    names = ("mistakes_per_question", "pairs_per_mistake", "pairs_per_question")
    found = {
        pairs: [getattr(resolved("dpo", {**GIVEN, "pairs": pairs}), name) for name in names]
        for pairs in ("one", "all")
    }
    assert found == {"one": [2, 1, 1], "all": [8, None, None]}
