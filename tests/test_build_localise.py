"""The first wrong step: rules, judge and rollouts, against truths that are known."""

import random
from collections.abc import Generator
from fractions import Fraction
from functools import partial
from typing import Any

import pytest

from prefkit.build.engines.base import Completion, Request
from prefkit.build.localise.equations import first_false
from prefkit.build.localise.judge import judge, judge_prompt, parse_verdict
from prefkit.build.localise.origins import stated
from prefkit.build.localise.program import locate
from prefkit.build.localise.rollouts import first_hopeless, last_with_hope
from prefkit.build.localise.verdict import Verdict
from prefkit.build.steps import split_steps
from prefkit.demo import arithmetic as world
from prefkit.demo.run import MODEL

# ------------------------------------------------------------------------------ false arithmetic

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


# ------------------------------------------------------------------------------------ expressions


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


# -------------------------------------------------------------------------------------- reference

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


# ------------------------------------------------------------------------------------------ judge


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("Fine.\nFinal Decision:\nStep 1: correct; Step 2: neutral; Step 3: incorrect", 1),
        ("Final Decision:\nStep 1: correct; Step 2: incorrect", 1),
        ("**Final Decision:**\n- **Step 1**: Correct\n- **Step 2**: INCORRECT\n", 1),
        ("final decision: step 1 - correct, step 2 - correct, step 3 - wrong", 2),
        ("Step 1 is correct. Step 2 is correct. Step 3 is incorrect.", 2),
        ("Step 1: correct\nStep 2: correct\nStep 3: not correct", 2),
        ("Final Decision:\nStep 1: incorrect\n\nWait.\nFinal Decision:\nStep 1: correct; "
         "Step 2: incorrect", 1),
        ("Step 1: incorrect? No. Step 1: correct; Step 2: correct; Step 3: incorrect", 2),
        ("## Final Decision\n\n1. Step 1: `correct`\n2. Step 2: `neutral`", 1),
        ("Final Decision:\nStep 1: correct; Step 2: correct; Step 3: correct", None),
        ("Step 3 adds 2 and 3, which is wrong.\nFinal Decision:\nStep 1: incorrect", 0),
        ("I cannot say.", None),
        ("", None),
        ("Final Decision:", None),
        ("Final Decision:\nStep 9: incorrect", None),
    ],
)  # fmt: skip
def test_what_judges_write_is_read(text: str, step: int | None) -> None:
    assert parse_verdict(text, 3).step == step


def test_the_judge_is_asked_once() -> None:
    def request(text: str) -> Request:
        return Request(key="q/judge", text=text, temperature=0.0, max_tokens=400, seed=0)

    steps = ["Step 1: 2 + 2 = 4\n", "Step 2: 4 * 2 = 9"]
    asked = judge("What is (2 + 2) * 2?", "It is 8.", steps, request)
    prompt = next(asked)[0].text
    assert "Step 1: 2 + 2 = 4\nStep 2: 4 * 2 = 9\n" in prompt
    assert prompt == judge_prompt("What is (2 + 2) * 2?", "It is 8.", steps)
    answer = Completion(key="q/judge", text="Step 1: correct; Step 2: incorrect", finish="end",
                        tokens=9)  # fmt: skip
    with pytest.raises(StopIteration) as end:
        asked.send([answer])
    assert end.value.value.step == 1


# --------------------------------------------------------------------------------------- rollouts


def run(asking: Generator[list[Request], list[Completion], Verdict], answer: Any) -> Verdict:
    try:
        requests = next(asking)
        while True:
            requests = asking.send([answer(request) for request in requests])
    except StopIteration as stop:
        return stop.value


def plain_request(prefix: list[str], number: int) -> Request:
    return Request(key=f"q/{len(prefix)}/{number}", text="".join(prefix), temperature=1.0,
                   max_tokens=9, seed=number)  # fmt: skip


@pytest.mark.parametrize(("good", "step"), [({0, 1}, 1), ({0}, 0), ({0, 1, 2}, 2), (set(), None)])
def test_the_first_hopeless_prefix_ends_with_the_wrong_step(
    good: set[int], step: int | None
) -> None:
    def answer(request: Request) -> Completion:
        length, number = map(int, request.key.split("/")[1:])
        text = "right" if length in good and number == 3 else "wrong"
        return Completion(key=request.key, text=text, finish="end", tokens=1)

    asking = first_hopeless(
        ["a\n", "b\n", "c\n"], plain_request, lambda texts: ["right" in x for x in texts], 4
    )
    assert run(asking, answer).step == step


@pytest.mark.parametrize(
    ("wins", "step"),
    [
        ([4, 5, 0, 1, 0, 0], 1),  # a right continuation by luck after a wrong step
        ([3, 1, 4, 0, 0, 0], 2),
        ([1, 0, 4, 0, 0, 0], 2),  # a right prefix without luck
        ([8, 8, 8, 8, 8, 8], 5),
        ([1, 0, 0, 0], 0),
    ],
)
def test_counts_are_read_together(wins: list[int], step: int) -> None:
    assert last_with_hope(wins, 8) == step


def test_no_steps_no_verdict() -> None:
    assert run(first_hopeless([], plain_request, lambda texts: []), None).step is None


def test_rollouts_find_the_wrong_step_of_the_tiny_model() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefkit.demo.evaluate import evaluate

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    problems = world.problems(90, "train", 3)
    wrong = [
        x
        for x in evaluate(model, tokenizer, problems, temperature=1.0, seed=0).transcripts
        if x.ended and x.verdict.first_wrong is not None and not x.verdict.answer_right
    ][:30]
    assert len(wrong) == 30

    # Every prompt and line has a fixed length, so prefixes of one length need no padding.
    askings, waiting = [], []
    for place, found in enumerate(wrong):
        asking = first_hopeless(
            split_steps(found.text, "lines"),
            partial(tiny_request, found.problem, place),
            partial(tiny_success, found.problem),
            continuations=12,
        )
        askings.append(asking)
        waiting.append(next(asking))
    written = continued(model, tokenizer, [r.text for requests in waiting for r in requests])
    exact = near = decided = 0
    for asking, requests, found in zip(askings, waiting, wrong, strict=True):
        completions = [
            Completion(key=r.key, text=next(written), finish="end", tokens=1) for r in requests
        ]
        with pytest.raises(StopIteration) as end:
            asking.send(completions)
        step, truth = end.value.value.step, found.verdict.first_wrong
        decided += step is not None
        exact += step == truth
        near += step is not None and abs(step - truth) <= 1
    print(f"rollouts: {decided} of 30 decided, {exact} exact, {near} within one step")
    assert decided >= 0.85 * 30
    assert near >= 0.85 * decided


def tiny_request(problem: world.Problem, place: int, prefix: list[str], number: int) -> Request:
    return Request(key=f"{place}/{len(prefix)}/{number}", text=problem.prompt + "".join(prefix),
                   temperature=1.0, max_tokens=50, seed=number)  # fmt: skip


def tiny_success(problem: world.Problem, texts: list[str]) -> list[bool]:
    return [world.check(problem, text).answer_right for text in texts]


def continued(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    """A sampled continuation of each text, in their order, batched by length."""
    import torch

    found: dict[int, str] = {}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        for length in sorted({len(text) for text in texts}):
            places = [i for i, text in enumerate(texts) if len(text) == length]
            ids = tokenizer([texts[i] for i in places], return_tensors="pt")["input_ids"]
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                max_new_tokens=world.PROMPT_LENGTH + world.SOLUTION_LENGTH + 1 - length,
                pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            texts_of = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            found.update(zip(places, texts_of, strict=True))
    return iter([found[i] for i in range(len(texts))])
