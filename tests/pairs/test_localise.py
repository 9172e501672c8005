"""The first wrong step by rule: false arithmetic, and a right solution to compare with."""

from fractions import Fraction

import pytest

from prefkit.pairs.localise.arithmetic.calculations import calculations, first_false
from prefkit.pairs.localise.program.locate import locate
from prefkit.pairs.localise.program.origins import stated
from prefkit.pairs.localise.verdict import Verdict

TRUE = [
    "She sold 48/2 = <<48/2=24>>24 clips",
    "2 + 3 = 5 x 4 = 20",
    "That is 6 inches * 2 remoras = 12 inches",
    "5 cents/sentence * 500 sentences = <<5*500=2500>>2500 cents",
    "He spent 5 hours for two weeks, 5*2 = 10 hours",
    "He makes $9 × 2 = $18.00 a day",
    "15 ÷ 2 = 7.5",
    "1 foot / 10 feet * 100% = 10%",
    "$50 + 10% = $55",
    "20% of 50 = 10",
    "1,200 + 300 = 1,500",
    "100/3 = 33.33 and 100/3 = 33.3 and 2/3 = 0.66",
    "580/110 = <<580/110=5.2727272727272725>>5.27 bags",
    "45 minutes * 4 = 3 hours",
    "50 cents x 80 = $40",
    "x + 5 = 12, so 2x + 3x = 60",
    "6:00 PM - 1:00 PM = 5:00 PM",
    "(3 + 4) * 2 = 14 and 4(7) - 10 = 18",
    "-48 + 21 + -3 = -30",
    "Yams - 6 yams x $1.5 = $9",
    "8 packs of 5 bags * $4 = $160",
    "a fee of $350 000 x 5/100 = $17 500.",
    "8 x 1 1/2 = 12 rolls",
    "50 / 3 = 16 each, with 2 remaining",
    "4 ( 5 - 6 ) = 4 (-1) = -4",
    "14/2(105 + 196) = 7(301) = 2107",
    "48/12 = 4 (5 remain) and 48/12 = 4 (48/12)",
    "8 = 5 + the rest, and 10^2 = 6^2 + OP^2",
]
FALSE = [
    "She sold 48/2 = <<48/2=26>>26 clips",
    "16 - 3 = 14",
    "2 + 3 = 5 x 4 = 21",
    "2 + 3 = 6 x 4 = 24",
    "8/2 = <<20*1/2=10>>10 pieces",
    "5005 * 1000 = <<5005*1000=5005000>>500000 cents",
    "1,200 + 300 = 1,600",
    "100/3 = 33.4",
    "20% of 50 = 12",
    "4 cars / 20 cars * 100% = 25%",
    "36 tickets + 12 tickets + 24 tickets = 73 tickets",
    "$9 × 2 = $19",
    "1/4 + 0 = 0.3 + 0 = 0.4",
    "7 / 0 = 7",
    "(3 + 4) * 2 = 11",
    "12 - 40 = 28",
    "48/12 = 5 (or so)",
    "4(5 - 6) = 4(-2) = -8",
]


@pytest.mark.parametrize("step", TRUE)
def test_true_calculations_are_left_alone(step: str) -> None:
    assert first_false(["nothing here", step]).step is None


@pytest.mark.parametrize("step", FALSE)
def test_false_calculations_are_found(step: str) -> None:
    assert first_false(["nothing here", step, "1 + 1 = 3"]).step == 1


def test_no_text_takes_long() -> None:
    hostile = ["9^9^9 = 1", "1" * 10**6 + " = 2", "(" * 10**5, "1+" * 10**5 + "1=2", "= " * 10**5]
    hostile += ["<<" * 10**5, "2^(2^(2^99)) = 4", "1 of " * 10**4 + "= 3", "- " * 10**4 + "1 = 1"]
    found = locate("What is it? 9^9^9 " + "7" * 10**5, hostile, solution="9^9^9 = 7\n#### 7")
    assert isinstance(found, Verdict)


def test_numbers_of_a_question_are_read_in_digits_and_words() -> None:
    text = "Two thirds of 1,200 are 25% of a dozen; half of twenty-five, a fifth, 1 1/2, at 6 PM"
    found = stated(text)
    expected = ("2/3", "1200", "25", "1/4", "12", "1/2", "1/5", "3/2", "6", "20")
    assert {Fraction(x) for x in expected} <= found
    assert Fraction(1, 4) not in stated("The fourth player ate a third of it")
    assert Fraction(1, 3) in stated("The fourth player ate a third of it")


def test_a_calculation_is_shown_without_the_lines_around_it() -> None:
    assert [found.text for found in calculations("1 + 2 = 3\n3 + 4 = 8\nso")] == [
        "1 + 2 = 3",
        "3 + 4 = 8",
    ]


QUESTION = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes "
    "muffins with four. She sells the remainder daily for $2 per egg. How much does she make?"
)
RIGHT = "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18.\n#### 18"


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        (["16 - 3 = 13 are left.", "13 - 4 = 9 are sold.", "9 * 2 = 18", "#### 18"], None),
        (["3 + 4 = 7 are used.", "16 - 7 = 9", "2 * 9 = $18", "#### 18"], None),
        (["16 * 2 = 32", "7 * 2 = 14", "32 - 14 = 18", "#### 18"], None),
        (["3 + 4 = 7 are used.", "16 * 7 = 112 eggs", "112 * 2 = 224", "#### 224"], 1),
        (["16 - 3 = 13 are left.", "13 * 2 = $26", "#### 26"], 1),
        (["16 - 3 - 4 = 9 are left.", "9 + 2 = 11", "#### 11"], 1),
        (["16 - 3 - 4 = 8 are left.", "8 * 2 = 16", "#### 16"], 0),
        (["She eats 3, so 16 - 5 = 11", "11 * 2 = 22", "#### 22"], 0),
        (["16 - 3 - 4 = 9 are left.", "9 * 2 = 18", "#### 81"], 2),
    ],
)
def test_reference_tells_other_ways_from_wrong_ones(steps: list[str], wrong: int | None) -> None:
    assert locate(QUESTION, steps, solution=RIGHT).step == wrong


def test_without_a_reference_only_false_arithmetic_and_strange_numbers_are_wrong() -> None:
    assert locate(QUESTION, ["16 * 3 = 48", "48 * 2 = 96"]).step is None
    assert locate(QUESTION, ["16 * 3 = 48", "48 * 2 = 98"]).step == 1
    assert locate(QUESTION, ["16 * 3 = 48", "48 * 37 = 1776"]).step == 1


def test_a_result_may_be_used_in_the_step_that_gives_it() -> None:
    steps = ["16 - 3 = 13 and 13 - 4 = 9, so 9 * 7 = 63", "63 / 7 = 9 and 9 * 2 = 18"]
    assert locate(QUESTION, steps).step is None
    assert locate(QUESTION, ["16 - 3 = 13 and 37 - 4 = 33"]).step == 0
