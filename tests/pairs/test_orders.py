"""The steps of an expression in any order: nothing true is called wrong, doubts are left open."""

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from prefkit.demo import arithmetic as world
from prefkit.pairs.asking import Asking
from prefkit.pairs.grading.rationals import parse, tokens_of, value_of
from prefkit.pairs.localise.expression.forms import form_of, moves, selections, value
from prefkit.pairs.localise.expression.orders import decided
from prefkit.pairs.pipelines.finding import Finder
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from tests.pairs.build_cases import drive, make_context, question
from tests.pairs.test_expression import corrupted


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("12*3+4=", ["12*3=36", "4+36=40"]),
        ("5+3+2=", ["5+3+2=10"]),
        ("5+3+2=", ["3+2=5", "5+5=10"]),
        ("5+3+2=", ["5+3+2=8+2=10"]),
        ("5+3+2=", ["5+3=8", "5+3+2=10"]),
        ("5+3+2=", ["5+3+2=8+2", "8+2=10", "10"]),
        ("5+3+2=", ["5+3=8", "A: 10"]),  # the last step is done in the mind
        ("47+8-9=", ["8-9=-1", "47-1=46"]),
        ("10-3-2=", ["3+2=5", "10-5=5"]),
        ("12/4/3=", ["4*3=12", "12/12=1"]),
        ("12/4*3=", ["3/4=0.75", "12*0.75=9"]),
        ("20-3*4*5=", ["4*5=20", "3*20=60", "20-60=-40"]),
        ("47-(9-8)=", ["9-8=1", "47-1=46"]),
        ("(3+4)*2-10/4 = ?", ["10÷4=2.5", "4+3=7", "2×7=14", "14−2.5=11.5", "#### 11.5"]),
        ("1/3+1/6=", ["1/3+1/6=2/6+1/6", "2/6+1/6=3/6", "3/6=1/2"]),
        ("2*3+2+3=", ["2+3=5", "2*3=6", "6+5=11"]),
        ("7-7+0*3=", ["7-7=0", "0*3=0", "0+0=0"]),
    ],
)
def test_right_solutions_in_any_order(expression: str, steps: list[str]) -> None:
    found = decided(expression, steps)
    assert found is not None
    assert found.step is None, found


@pytest.mark.parametrize(
    ("expression", "steps", "wrong", "said"),
    [
        ("5+3+2=", ["3+2=5", "5+5=11"], 1, "false arithmetic: 5+5=11 (certain)"),
        ("5+3+2=", ["5+3=8", "5+3+2=11"], 1, "(certain)"),
        ("5+3+2=", ["3+2=5", "7696=10"], 1, "(certain)"),
        ("5+3+2=", ["3+2=5", "5+12=17"], 1, "(likely)"),
        ("5+3+2=", ["5+3=8", "5+2=7"], 1, "(likely)"),  # the 5 is used up
        ("5+3+2=", ["5+3=8", "8+2=10", "10+4=14"], 2, "(likely)"),
        ("5+3+2=", ["5+3=8", "A: 8"], 1, "(likely)"),
        ("5+3+2=", ["5+3=8", "8+2="], 1, "cut off"),
        ("50+3+20=", ["50+3=53", "53+20=7"], 1, "cut off"),
        ("5+3+2=", ["2+3=5"], 1, "missing"),
        ("18+1-9+5+8-8+7=", ["18+1=19", "29-9=20", "20+5=25"], 1, "(likely)"),  # 20 is 5+8+7
        (
            "50+4+2-4-1-7-5=",
            ["50+4=54", "44+2=46", "46-4=42", "42-1=41"],
            1,
            "(likely)",
        ),  # 44 is 54-4-1-5
        ("12+4*3=", ["12+4=16", "16*3=48"], 0, "(likely)"),
        ("20-3*4=", ["20-3=17", "17*4=68"], 0, "(likely)"),
        ("2+2*3=", ["2+2=4", "4*3=12"], 0, "(likely)"),
        ("10-3-2=", ["3-2=1", "10-1=9"], 0, "(likely)"),
        ("47+8-9=", ["47+9=56", "56-8=48"], 0, "(likely)"),
        ("(3+4)*2=", ["3+4=7", "7*2=15"], 1, "(certain)"),
    ],
)
def test_wrong_steps_are_found(expression: str, steps: list[str], wrong: int, said: str) -> None:
    found = decided(expression, [f"{step}\n" for step in steps[:-1]] + steps[-1:])
    assert found is not None
    assert found.step == wrong
    assert said in found.reason


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("47+8-9=", ["9-8=1", "47-1=46"]),  # 47-(9-8), or a sign lost
        ("47+8-9=", ["9-8=1", "47+1=48"]),
        ("12/4*3=", ["4/3=4/3", "4*3=12", "12/12=1"]),
        ("47+8-9=", ["55-9=46", "46+1=47"]),  # 47+8 in the mind
        ("47+8-9=", ["47+3=50", "50+5=55", "55-9=47"]),  # 8 in two parts
        ("2+8=", ["2+3=5", "5+5=11"]),
        ("47+8-9+7-3=", ["55-9=46", "53-3=51"]),
        ("12*3+4*2+1=", ["36+8=44", "44+1=45", "45+1=47"]),
        ("47+8-9=", ["50+5=55", "55-9=47"]),
        ("47+25=", ["40+20=60", "7+5=12", "60+12=73"]),
        ("3*4+3*6=", ["4+6=10", "3*10=31"]),  # a factor taken out
        ("(3+4)*2=", ["3*2=6", "4*2=8", "6+8=15"]),  # a bracket opened
        ("47-(9-8)=", ["47-9=38", "38+8=45"]),
        ("2/7+3/7=", ["2+3=5", "5/7=6/7"]),
        ("99*7=", ["100*7=700", "700-7=683"]),  # rounded up first
        ("40*30=", ["4*3=12", "12*100=120"]),
        ("300+400=", ["3+4=7", "7*100=70"]),  # zeros left out
        ("6+6+5=", ["6*2=12", "12+5=18"]),  # a sum as a product
        ("9*9-9=", ["9*8=72", "72+1=73"]),
        ("1.5*6=", ["6+3=9", "9+1=10"]),  # a product as a sum
        ("5*5-4*4=", ["5+4=9", "5-4=1", "9*1=8"]),
        ("10/3+1=", ["10/3=3.33", "3.33+1=4.34"]),  # rounded
        ("5+3+2=", ["5+3=8+2=10", "10+1=11"]),  # "=" as "and then"
        ("5+3+2=", ["5+3=8", "5+3=8", "8+2=11"]),  # said twice
        ("2**3+1=", ["2**3=8", "8+1=10"]),
        ("5/0=", ["5/0=0"]),
        ("5+3+2=", ["First 5+3=8", "8+2=11"]),
        ("How much is 5+3?", ["5+3=9"]),
    ],
)
def test_a_doubt_is_left_to_others(expression: str, steps: list[str]) -> None:
    assert decided(expression, steps) is None


def random_solution(rng: random.Random) -> tuple[str, list[str]]:
    """An expression of sums and products, and a right solution in a random order."""
    terms = [[rng.randint(2, 9) for _ in range(rng.choice((1, 1, 2, 3)))] for _ in range(4)]
    signs = [1, *(rng.choice((1, -1)) for _ in terms[1:])]
    text = "".join(
        "+-"[sign < 0] + "*".join(map(str, term)) for sign, term in zip(signs, terms, strict=True)
    )
    steps = []
    while len(terms) > 1 or len(terms[0]) > 1:
        long = [term for term in terms if len(term) > 1]
        ready = [place for place, term in enumerate(terms) if len(term) == 1]
        if long and (len(ready) < 2 or rng.random() < 0.5):
            term = rng.choice(long)
            rng.shuffle(term)
            one, other = term.pop(), term.pop()
            steps.append(f"{one}*{other}={one * other}\n")
            term.append(one * other)
            continue
        one, other = rng.sample(ready, 2)
        first, second = signs[one] * terms[one][0], signs[other] * terms[other][0]
        steps.append(f"{first}{'+' if second >= 0 else '-'}{abs(second)}={first + second}\n")
        for place in sorted((one, other), reverse=True):
            del terms[place], signs[place]
        result = first + second
        terms.append([abs(result)])
        signs.append(1 if result >= 0 else -1)
    return text.removeprefix("+") + "=", steps


def test_random_orders_are_right_and_a_false_result_in_them_is_found() -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(400):
        expression, steps = random_solution(rng)
        if len(steps) < 2:
            continue
        verdict = decided(expression, steps)
        assert verdict is None or verdict.step is None, (expression, steps, verdict)
        at = rng.randrange(len(steps))
        left, _, right = steps[at].partition("=")
        wrong = [*steps[:at], f"{left}={int(right) + rng.choice((-10, 1, 10))}\n", *steps[at + 1 :]]
        verdict = decided(expression, wrong)
        assert verdict is None or verdict.step == at, (expression, wrong, verdict)
        found += verdict is not None
    assert found > 380


def test_moves_keep_the_value() -> None:
    form = form_of(parse(tokens_of("47+8-9-3*4/5")))
    left = form_of(parse(tokens_of("9-8")))
    ((after, sure),) = moves(form, left, Fraction(1))
    assert value(after) == value(form) == value_of("47+8-9-3*4/5")
    assert not sure
    ways = selections(form_of(parse(tokens_of("7+8-3*4"))))
    assert ways is not None
    assert {result for result, _, _ in ways} == {15, 5, 4, 3, 12}


def test_the_tiny_world_agrees_but_for_its_order() -> None:
    """It allows one order; a true step in another one is the only thing on which they differ."""
    rng, told, differ = random.Random(0), 0, 0
    for problem in world.problems(2000, "train", 0):
        text = corrupted(problem, rng)
        steps, truth = text.splitlines(keepends=True), world.check(problem, text).first_wrong
        found = decided(problem.prompt, steps)
        told += found is not None
        if found is None or found.step == truth:
            continue
        assert truth is not None
        left, _, right = steps[truth].strip().partition("=")
        assert value_of(left) == value_of(right)
        assert found.step is None or found.step > truth
        differ += 1
    assert told > 1000
    assert differ < 10


RIGHT = [("12*3+4=", ["12*3=36\n", "4+36=40\n"]), ("5+3+2=", ["5+3+2=10\n"])]


def heard(finder: Finder, find: Callable[[Finder, Any, Outcome], Asking[Any]]) -> Any:
    """What a finder finds, when nobody else can be asked."""
    context = make_context("step-dpo", None, finder=finder)  # type: ignore[arg-type]
    outcome, found = Outcome("q"), list[Any]()

    def reading() -> Asking[Outcome]:
        found.append((yield from find(finder, context, outcome)))
        return outcome

    assert drive(reading(), lambda request: ("", "end"))[1] == []  # nothing was sampled
    return found[0]


@pytest.mark.parametrize(("expression", "steps"), RIGHT)
@pytest.mark.parametrize("who", ["auto", "program"])
def test_the_filter_auto_takes_any_order_and_the_program_that_from_the_left(
    who: str, expression: str, steps: list[str]
) -> None:
    asked = question(expression, str(value_of(expression.rstrip("="))))
    found = heard(
        Finder(who, who, 1),
        lambda finder, context, outcome: finder.fault(asked, context, outcome, steps, "x"),
    )
    assert found == (None if who == "auto" else "right answer by a wrong step")


def test_a_right_answer_with_a_step_in_doubt_is_left_out() -> None:
    """`22-8=+4` is false, but its sign leaves a doubt: it must not become a chosen step."""
    steps = ("27-5=22\n", "22-8=+4\n", "24+8=22\n", "22+4=26\n", "26-8=18\n", "18-7=11\n")
    asked = question("27-5-8+8+4-8-7=", "11")
    found = heard(
        Finder("auto", "auto", 1),
        lambda finder, context, outcome: finder.fault(asked, context, outcome, steps, "x"),
    )
    assert found == "right answer, and a step in doubt"


@pytest.mark.parametrize(("who", "wrong"), [("auto", 1), ("program", 0)])
def test_the_localiser_auto_takes_any_order_and_the_program_that_from_the_left(
    who: str, wrong: int
) -> None:
    steps = ("3+2=5\n", "5+5=11\n")
    attempt = Attempt(0, "".join(steps), steps, right=False, answer="11", ended=True, decided=True)
    found = heard(
        Finder(who, "none", 1),
        lambda finder, context, outcome: finder.first_wrong(
            question("5+3+2=", "10"), context, outcome, attempt
        ),
    )
    assert found == wrong
