"""`prefkit inspect --json` says of every token whether and how much it counts."""

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefkit import inspect
from prefkit.data import PairCollator, TokenizeOptions, prepare_pairs
from prefkit.errors import ModelError
from tests.data_cases import (
    CONVERSATION_ROW,
    IMPLICIT_ROW,
    STANDARD_ROW,
    STEP_ROW,
    TDPO_FILE,
    cdpo_scored_file,
    character_tokenizer,
    named_tokenizer,
    scdpo_row,
)


@pytest.fixture(scope="module", params=["characters", "smollm2", "tiny"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return named_tokenizer(request.param, request)


def _inspect(source: Any, tokenizer: Any, **options: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    if not tokenizer.chat_template:
        given = options.get("options", TokenizeOptions())
        options = {**options, "options": replace(given, chat_template="plain")}
    assert inspect.run(source, tokenizer, as_json=True, stream=stream, **options) == 0
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _scored(row: dict[str, Any], segment: int) -> str:
    return "".join(token["text"] for token in row["tokens"] if token["segment"] == segment)


# format → (rows, options, scored chosen text, scored rejected text, end token)
CASES: dict[str, tuple[Any, dict[str, Any], str, str, bool]] = {
    "step": ([STEP_ROW], {}, STEP_ROW["chosen"], STEP_ROW["rejected"], False),
    "step as chat": (
        [STEP_ROW],
        {"options": TokenizeOptions(string_prompts="chat")},
        STEP_ROW["chosen"],
        STEP_ROW["rejected"],
        False,
    ),
    "whole solution": (
        [STEP_ROW],
        {"level": "solution"},
        STEP_ROW["full_chosen"],
        STEP_ROW["full_rejected"],
        True,
    ),
    "scdpo": (
        [scdpo_row()],
        {},
        "print(12 * 12)The answer is 144.",
        "print(12 + 12)The answer is 24.",
        True,
    ),
    "tdpo": (TDPO_FILE, {}, " Two cats have 8 legs.", " Two cats have 6 legs.", True),
    "standard": ([STANDARD_ROW], {}, " 4.", " 5.", True),
    "implicit prompt": ([IMPLICIT_ROW], {}, " blue.", " green.", True),
    "conversation": ([CONVERSATION_ROW], {}, "It is blue.", "It is green.", True),
    "own, with prefix": (
        [{"prompt": "Q", "prefix": " so", "chosen": " 1.", "rejected": " 2."}],
        {},
        " 1.",
        " 2.",
        False,
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_exactly_the_right_tokens_are_scored(name: str, tokenizer: Any) -> None:
    source, options, chosen, rejected, eos = CASES[name]
    row = _inspect(source, tokenizer, **options)[0]
    end = tokenizer.eos_token if eos else ""
    assert _scored(row, 0) == chosen + end
    assert _scored(row, 1) == rejected + end
    assert row["pair"] == 0
    assert row["eos"] == {"chosen": eos, "rejected": eos}
    for token in row["tokens"]:
        assert token.keys() == {"id", "text", "segment", "weight"}
        assert token["weight"] == (1.0 if token["segment"] >= 0 else 0.0)


def test_weights_are_on_the_right_tokens(tokenizer: Any) -> None:
    data = cdpo_scored_file(tokenizer)
    row = _inspect(data, tokenizer)[0]
    scores = data["prob_result"][0]["neg"]["ce_prob"]
    joint = tokenizer(data["prompt"][0] + data["rejected"][0])["input_ids"]
    rejected = row["tokens"][-len(joint) - 1 :]
    assert [token["id"] for token in rejected[:-1]] == joint
    for place, token in enumerate(rejected[:-1]):
        if token["segment"] == 1:
            assert token["weight"] == pytest.approx(1 - scores[place - 1], abs=1e-6)
    assert {token["weight"] for token in row["tokens"] if token["segment"] == 0} == {1.0}


def test_what_is_shown_is_what_is_trained(tokenizer: Any) -> None:
    source = [STEP_ROW, scdpo_row(), {**STANDARD_ROW, "rejected_spans": [[1, 2, 0.3]]}]
    template = None if tokenizer.chat_template else "plain"
    dataset = prepare_pairs(source, tokenizer, TokenizeOptions(chat_template=template))
    batch = PairCollator(0)([dataset[i] for i in range(3)])
    for row in _inspect(source, tokenizer):
        i = row["pair"]
        length = int(batch["attention_mask"][2 * i].sum())
        for r, tokens in ((2 * i, row["tokens"][:length]), (2 * i + 1, row["tokens"][length:])):
            assert batch["input_ids"][r, : len(tokens)].tolist() == [t["id"] for t in tokens]
            segments = batch["segments"][r, : len(tokens) - 1].tolist()
            assert segments == [t["segment"] for t in tokens[1:]]
            weights = batch["weights"][r, : len(tokens) - 1].tolist()
            assert weights == pytest.approx([t["weight"] for t in tokens[1:]])


def test_the_texts_join_to_the_whole_sequence(tokenizer: Any) -> None:
    row = _inspect([{**STEP_ROW, "append_eos": False}], tokenizer)[0]
    whole = "".join(token["text"] for token in row["tokens"])
    front = STEP_ROW["prompt"] + STEP_ROW["initial_reason_steps"]
    assert whole == front + STEP_ROW["chosen"] + front + STEP_ROW["rejected"]


def test_colours_and_summary_for_people() -> None:
    stream = io.StringIO()
    row = {**STANDARD_ROW, "rejected_weights": [0.5, 1.0, 1.0, 1.0], "chosen": " 4!"}
    inspect.run([row, STEP_ROW, scdpo_row()], character_tokenizer(), stream=stream, limit=1)
    text = stream.getvalue()
    assert "pair 0 · rows in memory, row 0" in text
    assert "chosen (4 scored tokens)  4!<eos>" in text
    assert "pair 1" not in text
    for words in ("3 in rows in memory", "weights other than 1", "tokens in shared prefixes"):
        assert words in text


def test_command_line_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(STEP_ROW) + "\n")
    character_tokenizer().save_pretrained(tmp_path / "model")
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    flags = [str(tmp_path / "rows.jsonl"), "--model", str(tmp_path / "model"), "--json"]
    assert inspect.run_arguments(parser.parse_args([*flags, "--level", "solution"])) == 0
    row = json.loads(capsys.readouterr().out)
    assert _scored(row, 0) == STEP_ROW["full_chosen"] + "<eos>"
    assert row["eos"] == {"chosen": True, "rejected": True}


def test_missing_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer could be loaded .* tokenizer\.json"):
        inspect.run([STANDARD_ROW], tmp_path / "nothing")
