"""What each method asks, selects and counts: its pipeline, driven by hand."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from prefkit.errors import PrefkitError
from prefkit.pairs.engines.base import Request
from prefkit.pairs.grading.grader import Grader
from prefkit.pairs.pipelines.cdpo import NEGATIVE, POSITIVE, cdpo
from prefkit.pairs.pipelines.dpo import dpo
from prefkit.pairs.pipelines.evaluate import evaluate, summary
from prefkit.pairs.pipelines.scdpo import scdpo
from prefkit.pairs.pipelines.step_dpo import step_dpo
from tests.pairs.build_cases import Writer, drive, make_context, question


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1) as found:
        yield found


def number(request: Request) -> int:
    return int(request.key.rpartition("/")[2])


def in_turn(*texts: str) -> Writer:
    """Solution i is the i-th text; "…" at its end means that it ran into max_tokens."""

    def write(request: Request) -> tuple[str, str]:
        text = texts[number(request)]
        return text.removesuffix("…"), "length" if text.endswith("…") else "end"

    return write


def test_temperatures_are_dealt_to_the_samples_in_turn(grader: Grader) -> None:
    context = make_context("dpo", grader, samples=5, temperature=[0.5, 0.9])
    _, asked = drive(dpo(question(), context), lambda request: ("42", "end"))
    assert [request.temperature for request in asked[0]] == [0.5, 0.9, 0.5, 0.9, 0.5]
    assert len({request.seed for request in asked[0]}) == 5


def test_dpo_pairs_each_text_once_and_counts_the_rest(grader: Grader) -> None:
    texts = ["so 42", "so 41", "so 42", "so 41", "thus 42", "hence 40", "no end…", "and 39"]
    context = make_context("dpo", grader, samples=8, pairs_per_question=3)
    outcome, _ = drive(dpo(question(), context), in_turn(*texts))
    pairs = [(row["chosen"], row["rejected"]) for row in outcome.rows]
    assert pairs == [("so 42", "so 41"), ("thus 42", "hence 40")]
    drops = +Counter(outcome.drops)
    assert drops == {
        "solutions: the same text as another": 2,
        "answers: no answer found": 1,
        "solutions: without a partner, or beyond pairs_per_question": 1,
    }
    assert 2 * len(outcome.rows) + sum(drops.values()) == outcome.counts["solutions sampled"]


def test_cdpo_selects_by_frequency_of_the_answer(grader: Grader) -> None:
    texts = [
        *("first 41", "second 41.0", "once 7", "thus $40", "hence 40", "so 40"),
        *("a way: 42", "another: 42.0", "no idea at all", "nothing", "who knows", "none of it"),
    ]
    context = make_context("cdpo", grader, samples=12)
    outcome, _ = drive(cdpo(question(), context), in_turn(*texts))
    (row,) = outcome.rows
    assert (row["chosen"], row["rejected"]) == ("a way: 42", "thus $40")
    negative = [found["response"] for found in outcome.extra[NEGATIVE]]
    assert negative == ["thus $40"]  # three of six wrong ones: half are covered
    assert [found["response"] for found in outcome.extra[POSITIVE]] == ["a way: 42"]
    assert outcome.drops["answers: no answer found"] == 4


def test_cdpo_takes_answers_until_half_of_the_wrong_solutions_are_covered(grader: Grader) -> None:
    texts = ["a 1", "b 1", "c 2", "d 3", "e 4", "f 42"]
    context = make_context("cdpo", grader, samples=6)
    outcome, _ = drive(cdpo(question(), context), in_turn(*texts))
    assert [found["response"] for found in outcome.extra[NEGATIVE]] == ["a 1", "c 2"]


def test_scdpo_gets_hotter_round_by_round_until_it_goes_wrong(grader: Grader) -> None:
    solution = "2+3=5\n5+4=9\n9+33=42"
    seen: list[Request] = []

    def write(request: Request) -> tuple[str, str]:
        if "/solution/" in request.key:
            return (solution, "end") if number(request) == 0 else ("it is 1", "end")
        seen.append(request)
        front = request.text.removeprefix("What is 6 times 7?")
        hot = request.temperature > 1.25
        return ("9+33=43" if hot else solution.removeprefix(front)), "end"

    options = {"samples": 2, "wrong_per_question": 1, "rising": [1.1, 0.1, 1.4]}
    outcome, _ = drive(scdpo(question(), make_context("scdpo", grader, **options)), write)
    assert sorted({request.temperature for request in seen}) == [1.1, 1.2, 1.3]
    assert [row["kind"] for row in outcome.rows] == ["naive", "step-controlled"]
    controlled = outcome.rows[1]
    assert controlled["prefix"] + controlled["chosen"] == solution
    assert controlled["rejected"].endswith("43")
    assert outcome.drops["continuations: still right"] == 4  # two prefixes in two rounds
    assert outcome.drops["continuations: beyond wrong_per_question"] == 1


def test_step_dpo_counts_every_solution_and_rectification(grader: Grader) -> None:
    wrong = "2+3=5\n5+4=8\n8+33=41"

    def write(request: Request) -> tuple[str, str]:
        if "/solution/" in request.key:
            return [(wrong, "end"), (wrong, "end"), ("42", "end")][number(request)]
        texts = ["5+4=9\n9+33=42", "5+4=9\n9+33=42", "5+4=8\n8+34=42", "5+4=9\n9+33=4", "it is 7"]
        ends = ["end", "end", "end", "length", "end"]
        return texts[number(request)], ends[number(request)]

    context = make_context("step-dpo", grader, "program", samples=3, rectifications=5)
    asked = question("Add 2, 3, 4 and 33.")
    outcome, _ = drive(step_dpo(asked, context), write)
    (row,) = outcome.rows
    assert (row["prefix"], row["chosen"], row["rejected"]) == ("2+3=5\n", "5+4=9\n", "5+4=8\n")
    assert row["full_rejected"] == "5+4=8\n8+33=41"
    assert outcome.drops["solutions: the same text as another"] == 1
    assert outcome.drops["rectifications: a step seen before"] == 2
    kinds = ("right", "wrong", "unfinished", "undecided")
    found = [outcome.counts[f"rectifications {kind}"] for kind in kinds]
    assert sum(found) == outcome.counts["rectifications sampled"] == 5
    assert found[:3] == [3, 1, 1]


def slow(answer: str, right: str) -> bool:
    if answer == "13":
        while True:
            pass
    return answer == right


def failing(answer: str, right: str) -> bool:
    if answer == "13":
        raise KeyError("thirteen")
    return answer == right


def test_what_cannot_be_compared_stands_on_neither_side() -> None:
    with Grader(workers=1, seconds=0.5, function="tests.pairs.test_pipelines:slow") as grader:
        context = make_context("dpo", grader, samples=3)
        outcome, _ = drive(dpo(question(), context), in_turn("so 42", "so 13", "so 41"))
    assert [row["rejected"] for row in outcome.rows] == ["so 41"]
    assert outcome.counts["solutions undecided"] == 1
    assert outcome.drops["answers: grading ended in timeout"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I do not know.", "no answer found"),
        ("\\boxed{42} so \\boxed{4", "no answer found"),
        ("<think>It is 42.", "the thought does not end"),
        ("He has 42 apples and 7 days.", "several answers, one of them right"),
        ("\\boxed{42!}", "too long or too large to be compared"),
        ("\\boxed{\\hspace{42}}", "words or a formula that cannot be read"),
    ],
)
@pytest.mark.parametrize(("method", "pipeline"), [("dpo", dpo), ("cdpo", cdpo), ("scdpo", scdpo)])
def test_undecided_solutions_are_counted_by_reason_and_taken_for_neither_side(
    grader: Grader, method: str, pipeline: Any, text: str, reason: str
) -> None:
    more = {"max_samples": 2} if method == "scdpo" else {}
    context = make_context(method, grader, samples=2, **more)
    outcome, _ = drive(pipeline(question(), context), in_turn("so 42", text))
    assert outcome.rows == []
    assert (outcome.counts["solutions right"], outcome.counts["solutions wrong"]) == (1, 0)
    assert outcome.counts["solutions undecided"] == outcome.drops[f"answers: {reason}"] == 1
    assert not outcome.extra.get(NEGATIVE)


def test_step_dpo_looks_for_no_mistake_in_undecided_or_unfinished_right_solutions(
    grader: Grader,
) -> None:
    def write(request: Request) -> tuple[str, str]:
        return ("it is what it is", "end") if number(request) else ("2+3=5\n9+33=42", "length")

    context = make_context("step-dpo", grader, "program", samples=2)
    outcome, asked = drive(step_dpo(question("Add 2, 3, 4 and 33."), context), write)
    assert len(asked) == 1
    assert outcome.drops["questions: all right"] == 1


def test_a_thought_that_the_prompt_opens_is_not_the_answer(grader: Grader) -> None:
    context = make_context("dpo", grader, samples=3, joiner="\n<think>\n")
    texts = ["It may be 41.</think>It is 42.", "It is 42.", "42?</think>It is 41."]
    outcome, _ = drive(dpo(question(), context), in_turn(*texts))
    assert [(row["chosen"], row["rejected"]) for row in outcome.rows] == [(texts[0], texts[2])]
    assert outcome.drops["answers: the thought does not end"] == 1


def test_an_evaluation_tells_wrong_from_undecided(grader: Grader) -> None:
    context = make_context("evaluate", grader, samples=1, temperature=[0.0])
    rows = []
    for text in ("so 42", "so 41", "who knows", "so 40"):
        rows += drive(evaluate(question(), context), in_turn(text))[0].rows
    for place, row in enumerate(rows):
        row["id"] = f"q{place}-0"
    found = summary(rows)
    assert (found["accuracy"], found["wrong"], found["undecided"]) == (0.25, 0.5, 0.25)


def test_a_grader_of_ones_own_that_fails_stops_the_build() -> None:
    name = "tests.pairs.test_pipelines:failing"
    with Grader(workers=1, function=name) as grader:
        context = make_context("dpo", grader, samples=2, grader=name)
        with pytest.raises(PrefkitError, match=r"failed on the answer '13' .* row 0: KeyError"):
            drive(dpo(question(), context), in_turn("so 42", "so 13"))
