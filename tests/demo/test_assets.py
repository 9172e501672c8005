"""What ships with the demo: model, tokenizer, and pairs that really are right against wrong."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from prefkit.data import read_pairs
from prefkit.demo import arithmetic as world
from prefkit.demo.run import ASSETS, MODEL, PAIRS

FIELDS = {
    *("prompt", "initial_reason_steps", "chosen", "rejected"),
    *("full_chosen", "full_rejected", "answer"),
}


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def right_lines(prompt: str) -> list[str]:
    """The solution by Python's own evaluation, without the project's world."""
    expression = prompt.rstrip("=\n")
    done, lines = expression[:2], []
    for operation in re.findall(r"[+-]\d", expression):
        lines.append(f"{eval(done)}{operation}={eval(done + operation)}\n")
        done += operation
    return lines


def test_sizes():
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 4_000_000
    assert sizes[MODEL / "model.safetensors"] <= 3_000_000
    assert not [path for path in sizes if path.suffix in (".bin", ".pt", ".pkl", ".py")]


def test_every_pair_is_right_against_wrong(rows):
    assert len(rows) >= 512
    for row in rows:
        right = right_lines(row["prompt"])
        at = row["initial_reason_steps"].count("\n")
        assert set(row) == FIELDS
        assert row["initial_reason_steps"] == "".join(right[:at])
        assert row["chosen"] == right[at]
        assert re.fullmatch(r"\d\d[+-]\d=\d\d\n", row["rejected"])
        assert row["rejected"] != row["chosen"]
        assert row["initial_reason_steps"] + row["full_chosen"] == "".join(right)
        assert row["full_rejected"].startswith(row["rejected"])
        assert row["answer"] == str(eval(row["prompt"].rstrip("=\n")))


def test_pairs_come_from_training_problems_and_no_problem_twice(rows):
    problems = [world.parse_prompt(row["prompt"]) for row in rows]
    assert {problem.split for problem in problems} == {"train"}
    assert len(set(problems)) == len(problems)
    assert not set(problems) & set(world.problems(1000, "held_out", seed=0))


def test_pairs_are_read_as_steps_and_as_solutions(rows):
    steps = read_pairs(str(PAIRS), level="step")
    solutions = read_pairs(str(PAIRS), level="solution")
    assert len(steps) == len(solutions) == len(rows)
    for row, step, solution in zip(rows, steps, solutions, strict=True):
        assert (step.prompt, step.prefix) == (row["prompt"], row["initial_reason_steps"])
        assert (step.chosen.text, step.rejected.text) == (row["chosen"], row["rejected"])
        assert solution.chosen.text == row["full_chosen"]
        assert solution.rejected.text == row["full_rejected"]
        assert not step.append_eos
        assert solution.append_eos


def test_model_is_ordinary_and_small():
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.dtype == torch.float32  # fp16 on disk, widened when loaded
    assert 500_000 < sum(p.numel() for p in model.parameters()) < 700_000
    assert model.config.eos_token_id == 1


def test_tokenizer_round_trip(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for problem in world.problems(50, "validation", seed=0):
        text = problem.prompt + problem.solution
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert encoded["offset_mapping"] == [(i, i + 1) for i in range(len(text))]
        assert tokenizer.decode(encoded["input_ids"]) == text
        ended = tokenizer(text + tokenizer.eos_token)["input_ids"]
        assert ended == [*encoded["input_ids"], tokenizer.eos_token_id]
        assert tokenizer.decode(ended, skip_special_tokens=True) == text


def test_a_foreign_character_is_not_dropped(tokenizer):
    assert tokenizer("1 2")["input_ids"][1] == tokenizer.unk_token_id
