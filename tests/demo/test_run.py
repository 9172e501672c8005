"""`prefkit demo` on a few problems and steps; its figures are checked by the slow test."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit.cli.demo import run as main
from prefkit.demo import arithmetic as world
from prefkit.demo.evaluate import Evaluation, Transcript, evaluate
from prefkit.demo.run import MODEL, find_example, run
from prefkit.errors import ConfigError


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)


def test_evaluation_equals_greedy_decoding_token_by_token(shipped):
    model, tokenizer = shipped
    held_out = world.problems(6, "held_out", seed=5)
    found = evaluate(model, tokenizer, held_out, batch_size=4)
    for problem, transcript in zip(held_out, found.transcripts, strict=True):
        ids = tokenizer(problem.prompt, return_tensors="pt")["input_ids"]
        for _ in range(world.SOLUTION_LENGTH + 1):
            with torch.no_grad():
                best = model(ids).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], dim=1)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == (
            problem.prompt + transcript.text
        )
        assert transcript.ended
        assert transcript.verdict == world.check(problem, transcript.text)


def test_start_is_the_one_described(shipped):
    found = evaluate(*shipped, world.problems(300, "held_out", seed=1))
    assert 0.5 < found.accuracy < 0.8
    assert found.step_accuracy <= found.accuracy


def test_sampling_is_seeded_and_leaves_the_callers_random_state(shipped):
    held_out = world.problems(20, "held_out", seed=1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = evaluate(*shipped, held_out, temperature=1.0, samples=2, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == evaluate(*shipped, held_out, temperature=1.0, samples=2, seed=4)
    assert first != evaluate(*shipped, held_out, temperature=1.0, samples=2, seed=5)
    assert [t.problem for t in first.transcripts[::2]] == held_out


def test_example_is_a_step_that_was_wrong_and_is_right():
    problem = world.parse_prompt("47+8-9+7-3+5-7=\n")
    wrong = problem.solution.replace("55-9=46\n46", "55-9=56\n56")

    def evaluation(text: str) -> Evaluation:
        return Evaluation((Transcript(problem, text, world.check(problem, text), True),), 1)

    example = find_example(evaluation(wrong), evaluation(problem.solution))
    assert example is not None
    assert (example.step, example.before, example.after) == (2, "55-9=56", "55-9=46")
    assert find_example(evaluation(problem.solution), evaluation(problem.solution)) is None
    assert find_example(evaluation(wrong), evaluation(wrong)) is None


def test_a_short_run_trains_saves_and_reports(tmp_path, capsys):
    result = run(seed=1, output_dir=str(tmp_path / "out"), problems=20, steps=2)
    text = capsys.readouterr().out
    assert "before" in text
    assert "does not rank methods" in text
    assert json.loads((tmp_path / "out" / "demo.json").read_text()) == result
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    again = evaluate(trained, tokenizer, world.problems(20, "held_out", seed=1))
    assert again.accuracy == result["accuracy_after"]
    start = AutoModelForCausalLM.from_pretrained(MODEL).get_input_embeddings().weight
    assert not torch.equal(trained.get_input_embeddings().weight, start)


@pytest.mark.parametrize("method", ["dpo", "tdpo2"])
def test_other_methods_run(method, capsys):
    assert main(["--method", method, "--steps", "1", "--problems", "3"]) == 0
    assert f"Training: {method}" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "said"), [("scdpo", True), ("dpo", False)])
def test_scdpo_says_what_it_is_here(method, said, capsys):
    assert main(["--method", method, "--steps", "1", "--problems", "1"]) == 0
    assert ("the one that --method dpo makes" in capsys.readouterr().out) == said


@pytest.mark.parametrize("flags", [["--stepz", "1"], ["--steps", "many"], ["--seed", "-1"]])
def test_wrong_flags_are_one_line(flags, capsys):
    from prefkit.cli.main import main as prefkit

    assert prefkit(["demo", *flags]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("prefkit: ")
    assert flags[0][2:] in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "cdpo"}, "method is 'cdpo'.*prefkit train"),
        ({"problems": 0}, "problems is 0.*1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"steps": 0}, "steps is 0.*1 or more"),
        ({"output_dir": "/dev/null/here"}, "output_dir: /dev/null/here cannot be written.*another"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError, match=message):
        run(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_accuracy_rises_by_fifteen_points(seed):
    result = run(seed=seed)
    assert result["accuracy_after"] >= result["accuracy_before"] + 0.15
    assert result["example"] is not None
