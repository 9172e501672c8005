"""Critical tokens: the benchmark's truth and its area, and a small run of all of it."""

import numpy as np
import pytest

from benchmarks.critical_tokens import run, select
from benchmarks.critical_tokens_measure import area, marked
from prefkit.demo import arithmetic as world
from prefkit.demo.evaluate import Transcript

PROBLEM = world.parse_prompt("47+8-9+7-3+5-7=\n")


def test_the_area_by_hand() -> None:
    positive = np.array([True, False, True, False, False])
    assert area(np.array([5.0, 1, 4, 2, 3]), positive) == 1
    assert area(np.array([1.0, 5, 2, 4, 3]), positive) == 0
    assert area(np.zeros(5), positive) == 0.5
    assert area(np.array([3.0, 3, 1, 2, 0]), positive) == pytest.approx((2.5 + 1) / 6)


def test_wrong_tokens_are_known() -> None:
    right = PROBLEM.lines
    assert marked(PROBLEM, PROBLEM.solution) is None
    # 47+8 → 45 (carry forgotten), then on from 45 rightly but for another slip in the last line
    text = "47+8=45\n45-9=36\n36+7=43\n43-3=40\n40+5=45\n45-7=48\n"
    found = marked(PROBLEM, text)
    assert found is not None
    assert np.flatnonzero(found.first).tolist() == [5]
    assert np.flatnonzero(found.any).tolist() == [5, 45]
    assert marked(PROBLEM, "48+8=56\n" + "".join(right[1:])) is None  # miscopied: no wrong result
    assert marked(PROBLEM, right[0]) is None  # unfinished


def test_selection_is_the_build_s() -> None:
    """One of the most frequent right answer; wrong answers until half of the wrong are covered.

    What the benchmark trains on is what `prefkit build cdpo` selects: grouping and covering are its
    own functions, here with an answer that no group may take and a tie between groups.
    """
    answers = ["18", "48", "48", "38", "38", "58", "58", "28", "?"]
    texts = [f"{i}\n40+8={answer}\n" for i, answer in enumerate(answers)]
    group = [Transcript(PROBLEM, text, world.check(PROBLEM, text), True) for text in texts]
    assert [t.verdict.answer_right for t in group] == [a == "48" for a in answers]
    positive, negative = select([group])
    assert positive == [{"prompt": PROBLEM.prompt, "response": texts[1]}]
    assert [row["response"] for row in negative] == [texts[3], texts[5]]  # 4 of 6; 2 were not half
    assert select([group[1:3]])[1] == []
    assert select([group[:1]])[0] == []


@pytest.mark.slow
def test_contrastive_scores_find_the_wrong_digits() -> None:
    """The issue's bound, 0.8, on a small set; what the full benchmark finds is in its results."""
    found = run(60, 8, 60, seed=3, names=("LoRA",), strengths=(1.0,))
    got = found["LoRA", 1.0]
    assert got.auc >= 0.8
    assert got.auc_any >= 0.8
    assert got.wrong < got.other - 0.2
