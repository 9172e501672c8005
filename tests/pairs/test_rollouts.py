"""The first wrong step by a model's own continuations, against the tiny world's truth."""

from collections.abc import Generator
from functools import partial
from typing import Any

import pytest

from prefkit.demo import arithmetic as world
from prefkit.demo.run import MODEL
from prefkit.pairs.engines.base import Completion, Request
from prefkit.pairs.localise.rollouts import first_hopeless, last_with_hope
from prefkit.pairs.localise.verdict import Verdict
from prefkit.pairs.steps import split_steps


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
    assert last_with_hope(wins, [8] * len(wins)) == step


def test_an_undecided_continuation_is_no_try() -> None:
    assert last_with_hope([4, 4, 0, 0], [4, 4, 0, 4]) == 1
    assert last_with_hope([4, 0, 4, 0], [4, 0, 4, 4]) == 2  # of the second prefix nothing is known

    def answer(request: Request) -> Completion:
        length = request.key.split("/")[1]
        text = {"0": "right", "1": "undecided", "2": "right"}[length]
        return Completion(key=request.key, text=text, finish="end", tokens=1)

    def succeed(texts: list[str]) -> list[bool | None]:
        return [None if "undecided" in text else "right" in text for text in texts]

    verdict = run(first_hopeless(["a\n", "b\n", "c\n"], plain_request, succeed, 4), answer)
    assert verdict.step == 2
    assert "4 0/0 4" in verdict.reason


@pytest.mark.parametrize(
    ("wins", "trust"),
    [
        ([0, 1, 0, 0, 0], "a guess"),  # one lucky continuation of 80
        ([1, 1, 1, 1, 0, 0], "a guess"),
        ([4, 4, 2, 2, 0, 4], "a guess"),
        ([8, 9, 7, 0, 1], "likely"),
        ([0, 4, 1, 0], "likely"),
    ],
)
def test_little_evidence_is_called_a_guess(wins: list[int], trust: str) -> None:
    def answer(request: Request) -> Completion:
        length, number = map(int, request.key.split("/")[1:])
        text = "right" if number < wins[length] else "wrong"
        return Completion(key=request.key, text=text, finish="end", tokens=1)

    asking = first_hopeless(
        ["a\n"] * len(wins), plain_request, lambda texts: ["right" in x for x in texts], 16
    )
    assert run(asking, answer).reason.endswith(f"({trust})")


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
    exact = near = 0
    for asking, requests, found in zip(askings, waiting, wrong, strict=True):
        completions = [
            Completion(key=r.key, text=next(written), finish="end", tokens=1) for r in requests
        ]
        with pytest.raises(StopIteration) as end:
            asking.send(completions)
        step, truth = end.value.value.step, found.verdict.first_wrong
        exact += step == truth
        near += step is not None and abs(step - truth) <= 1
    print(f"rollouts: of 30 {exact} the very step, {near} within one step")
    assert near >= 0.85 * 30  # of all: a solution left undecided counts as missed
    assert exact >= 0.7 * 30


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
