"""Do equal answers count as equal, and do the groups of a build hold equal ones only?"""

import itertools
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.pairs.grading.compare import equality
from prefkit.pairs.grading.compare.equality import equal
from prefkit.pairs.grading.compare.grouping import MAX_KEY, group_key
from prefkit.pairs.grading.compare.normal_form import normal
from prefkit.pairs.grading.units import quantity
from tests.pairs.hostile_answers import HOSTILE

pytest.importorskip("math_verify", reason="grading needs math-verify: pip install 'prefkit[build]'")

PAIRS = Path(__file__).parent / "graded_answers.jsonl"


def pairs() -> list[dict]:
    return [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


def test_pairs_are_judged_as_by_hand() -> None:
    rows = pairs()
    assert len(rows) >= 220
    assert 0.5 < sum(row["equal"] for row in rows) / len(rows) < 0.7
    wrong = [row for row in rows if equal(row["answer"], row["gold"]) != row["equal"]]
    print(f"{len(rows) - len(wrong)} of {len(rows)} right; wrong: {wrong}")
    assert len(wrong) <= 0.01 * len(rows), wrong


def test_every_right_answer_equals_itself_by_its_meaning() -> None:
    """Past the comparisons of the text: by value, structure or formula."""
    golds = sorted({row["gold"] for row in pairs() if "_" not in row["gold"]})  # 11_2 is text
    assert len(golds) > 200
    for gold in golds:
        assert equality._by_meaning(normal(gold), normal(gold)).equal, gold
        assert equal(f"\\boxed{{{gold}}}", gold), gold


def test_every_number_differs_from_the_next_one() -> None:
    golds = sorted({row["gold"] for row in pairs()})
    found = [(gold, quantity(normal(gold))) for gold in golds]
    numbers = [(gold, x) for gold, x in found if x and x.value is not None and not x.percent]
    assert len(numbers) > 80
    for gold, number in numbers:
        for change in (1, -1, 100):
            assert not equal(str(number.value + change), gold), gold


# ---------------------------------------------------------------------------------- groups

_PIECES = st.sampled_from(
    [*"0123456789.,/-+ $%xAmk()[]{}=", "\\frac", "{1}{2}", "€", " cm", " m", " cents", " million",
     " dozen", "\\!", "\\text{ apples}", "\\pi", "^2", "\\%", ".0", "\\boxed{", "yes", "**"]
)  # fmt: skip
_ANSWERS = st.lists(_PIECES, max_size=6).map("".join)


def test_one_key_means_equal() -> None:
    answers = sorted({row[side] for row in pairs() for side in ("answer", "gold")})
    groups: dict[str, list[str]] = {}
    for answer in answers:
        groups.setdefault(group_key(answer), []).append(answer)
    assert len(groups) < 0.75 * len(answers)
    for group in groups.values():
        for one, other in itertools.permutations(group, 2):
            assert equal(one, other), (one, other)


@given(st.lists(_ANSWERS, min_size=12, max_size=12))
@settings(max_examples=100, deadline=None)
def test_one_key_means_equal_whatever_is_written(answers: list[str]) -> None:
    spelt = [answer.strip() for answer in answers if answer.strip()]
    spelt += [f"{answer}.0" for answer in spelt] + [f"${answer}$" for answer in spelt]
    groups: dict[str, list[str]] = {}
    for answer in dict.fromkeys(spelt):
        groups.setdefault(group_key(answer), []).append(answer)
    for group in groups.values():
        for one, other in itertools.permutations(group, 2):
            assert equal(one, other), (one, other)


@pytest.mark.parametrize(
    "group",
    [
        ["7", "7.0", " 7", "$7", "7 dollars", "7 apples", "\\boxed{7}", "**7**", "14/2"],
        ["1/2", "\\frac{1}{2}", "0.5", "\\dfrac12", "5 tenths"],
        ["1,000", "1000", "1 thousand", "1k"],
        ["1 m", "100 cm", "1 meter"],
        ["Yes", "yes", "\\text{Yes}"],
        ["x + 1", "x+1"],
        ["10,\\!080", "10080", "10{,}080"],
    ],
)
def test_spellings_fall_together(group: list[str]) -> None:
    assert len({group_key(answer) for answer in group}) == 1


def test_other_answers_stay_apart() -> None:
    apart = ["7", "8", "-7", "€7", "7 cm", "7 m", "7 million", "7 cents", "0.333", "1/3", "x", "",
             "0,111", "111", "11_2", "11"]  # fmt: skip
    assert len({group_key(answer) for answer in apart}) == len(apart)


@pytest.mark.parametrize("name", HOSTILE)
def test_keys_of_hostile_answers_are_short_and_soon_made(name: str) -> None:
    for text in (HOSTILE[name], HOSTILE[name][:600], "1 " + HOSTILE[name][:590]):
        start = time.process_time()
        assert len(group_key(text)) <= MAX_KEY
        assert time.process_time() - start < 1.0
