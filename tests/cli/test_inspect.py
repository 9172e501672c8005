"""`prefkit inspect --json` says of every token whether and how much it counts."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig

from prefkit.cli.inspect import COMMAND, run
from prefkit.cli.main import main
from prefkit.cli.train import load_options
from prefkit.data import PairCollator, ReadOptions, TokenizeOptions, prepare_pairs
from prefkit.data.show import load_tokenizer, show_pairs
from prefkit.data.show.pairs import COLOUR_LEGEND, PLAIN_LEGEND
from prefkit.errors import ConfigError, EqualError, ModelError
from prefkit.options.page import show_help
from prefkit.train.rows.pairs import prepare_dataset
from tests.data.data_cases import (
    CONVERSATION_ROW,
    IMPLICIT_ROW,
    STANDARD_ROW,
    STEP_ROW,
    TDPO_FILE,
    TINY,
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
    assert show_pairs(source, tokenizer, as_json=True, stream=stream, **options) == 0
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
        {"reading": ReadOptions(level="solution")},
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
            scored = [(j, t) for j, t in enumerate(tokens) if t["segment"] >= 0]
            mine = batch["segments"] == scored[0][1]["segment"]
            before = r * batch["input_ids"].shape[1] - 1
            assert batch["positions"][mine].tolist() == [before + j for j, _ in scored]
            assert batch["targets"][mine].tolist() == [t["id"] for _, t in scored]
            weights = batch["weights"][mine].tolist()
            assert weights == pytest.approx([t["weight"] for _, t in scored])


def test_the_texts_join_to_the_whole_sequence(tokenizer: Any) -> None:
    row = _inspect([{**STEP_ROW, "append_eos": False}], tokenizer)[0]
    whole = "".join(token["text"] for token in row["tokens"])
    front = STEP_ROW["prompt"] + STEP_ROW["initial_reason_steps"]
    assert whole == front + STEP_ROW["chosen"] + front + STEP_ROW["rejected"]


def test_colours_and_summary_for_people() -> None:
    stream = io.StringIO()
    row = {**STANDARD_ROW, "rejected_weights": [0.5, 1.0, 1.0, 1.0], "chosen": " 4!"}
    show_pairs([row, STEP_ROW, scdpo_row()], character_tokenizer(), stream=stream, limit=1)
    text = stream.getvalue()
    assert "pair 0 · rows in memory, row 0" in text
    assert "chosen (4 scored tokens) ⟦ 4!<eos>⟧" in text
    assert "pair 1" not in text
    for words in ("3 in rows in memory", "weights other than 1", "tokens in shared prefixes"):
        assert words in text


def test_command_line_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(STEP_ROW) + "\n")
    character_tokenizer().save_pretrained(tmp_path / "model")
    flags = ["--json", str(tmp_path / "rows.jsonl"), "--model", str(tmp_path / "model")]
    assert run([*flags, "--level", "solution"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert _scored(row, 0) == STEP_ROW["full_chosen"] + "<eos>"
    assert row["eos"] == {"chosen": True, "rejected": True}


def test_rows_that_are_skipped_are_counted_by_kind(tmp_path: Path, capsys: Any) -> None:
    rows = [STEP_ROW, {**STANDARD_ROW, "chosen": ""}, {**STANDARD_ROW, "rejected": " "}]
    rows.append({**STANDARD_ROW, "rejected": STANDARD_ROW["chosen"]})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    character_tokenizer().save_pretrained(tmp_path / "model")
    flags = [str(data), "--model", str(tmp_path / "model"), "--empty", "skip"]
    assert run([*flags, "--equal", "skip"]) == 0
    assert "2 × empty, 1 × equal" in capsys.readouterr().out
    with pytest.raises(EqualError, match="row 3"):
        run(flags)


def test_missing_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer could be loaded .* tokenizer\.json"):
        show_pairs([STANDARD_ROW], tmp_path / "nothing")


MODEL, PAIRS = str(TINY), str(TINY.parent / "pairs.jsonl")


def _command(*argv: str) -> int:
    return run(argv)


def _config(folder: Path, **options: Any) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL, "train_data": PAIRS, **options}))
    return str(path)


@pytest.mark.parametrize("method", ["dpo", "step-dpo", "tdpo2"])
def test_a_config_shows_the_tokens_that_train_scores(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"chat_template": "plain", "max_length": 200, "output_dir": str(tmp_path / "out")}
    path = _config(tmp_path, method=method, string_prompts="chat", learning_rate=1e-5, **options)
    config = load_options([path]).config
    tokenizer = load_tokenizer(MODEL)
    trained = prepare_dataset(PAIRS, tokenizer, config, AutoConfig.from_pretrained(MODEL), "train")
    assert _command(path, "--json", "--limit", "2") == 0
    for row in map(json.loads, capsys.readouterr().out.splitlines()):
        pair = trained.pairs[row["pair"]]  # type: ignore[attr-defined]
        ids = [*pair.chosen.ids.tolist(), *pair.rejected.ids.tolist()]
        assert [token["id"] for token in row["tokens"]] == ids
        assert [token["segment"] >= 0 for token in row["tokens"]] == [
            *pair.chosen.scored.tolist(),
            *pair.rejected.scored.tolist(),
        ]


def test_keys_of_other_machines_and_flags_over_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _config(tmp_path, method="step-dpo", tf32=True, bf16=True, optim="adamw_bnb_8bit")
    assert _command(path) == 0
    shown = capsys.readouterr().out
    for words in ("level step", "method step-dpo", "string prompts raw"):
        assert words in shown
    (tmp_path / "own.jsonl").write_text(json.dumps(STANDARD_ROW | {"prompt": "2+2="}) + "\n")
    assert _command(path, str(tmp_path / "own.jsonl"), "--method", "scdpo") == 0
    shown = capsys.readouterr().out
    assert "level solution" in shown
    assert "method scdpo" in shown
    assert "1 in" in shown


def test_a_method_reads_at_its_level_and_data_alone_at_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for flags, level in (((), "step"), (("--method", "dpo"), "auto"), (("--method", "scdpo"), "s")):
        assert _command(PAIRS, "--model", MODEL, "--limit", "1", *flags) == 0
        shown = capsys.readouterr().out
        assert f"level {level}" in shown
        assert ("<eos>" in shown.split("read with")[0]) == (level != "step")


def test_configs_and_flags_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no option 'string_promts'. Did you mean 'string_pro"):
        _command(_config(tmp_path, string_promts="chat"))
    with pytest.raises(ConfigError, match="train_data"):
        _command(_config(tmp_path, train_data=[]))
    with pytest.raises(ConfigError, match=r"Add --model"):
        _command(PAIRS)
    with pytest.raises(ConfigError, match="limit is -1"):
        _command(PAIRS, "--model", MODEL, "--limit", "-1")
    with pytest.raises(ConfigError, match="chat_template_kwargs is '7'"):
        _command(PAIRS, "--model", MODEL, "--chat_template_kwargs", "7")
    with pytest.raises(ConfigError, match="contradict"):
        _command(PAIRS, "--model", MODEL, "--score_tool_output", "--mask_tool_output", "true")


def test_tool_output_and_template_variables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(scdpo_row()) + "\n")
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{{ greeting }}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "model")
    flags = [str(tmp_path / "rows.jsonl"), "--model", str(tmp_path / "model"), "--json"]
    flags += ["--chat_template_kwargs", '{"greeting": "Hello!"}']
    for masked in ("true", "false"):
        assert _command(*flags, "--mask_tool_output", masked) == 0
        row = json.loads(capsys.readouterr().out)
        assert "".join(token["text"] for token in row["tokens"]).startswith("Hello!")
        assert ("144\n" in _scored(row, 0)) == (masked == "false")


def test_help_says_choices_and_the_shape_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    show_help(COMMAND)
    shown = capsys.readouterr().out
    for words in ("step-dpo,scdpo,cdpo,dpop,tdpo", '{"id": …, "text": …', "2i+1", "-1 for"):
        assert words in shown


def test_data_alone_needs_no_training_code(tmp_path: Path) -> None:
    program = (
        "import sys; from prefkit.cli.main import main; "
        f"main(['inspect', {PAIRS!r}, '--model', {MODEL!r}, '--limit', '1']); "
        "print([m for m in sys.modules if m in ('prefkit.train.config', 'transformers.trainer')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_without_colour_marks_show_weights_and_context() -> None:
    stream = io.StringIO()
    row = {**STANDARD_ROW, "rejected_weights": [0.3, 0, 1, 1]}
    show_pairs([{**row, "rejected": " 5."}, scdpo_row()], character_tokenizer(), stream=stream)
    text = stream.getvalue()
    assert text.startswith(PLAIN_LEGEND)
    assert "rejected (4 scored tokens, 1 of weight 0) ⟦ ⟧×0.3⟦5⟧×0⟦.<eos>⟧" in text
    assert "⟦print(12 * 12)⟧\n144\n⟦The answer is 144.<eos>⟧" in text
    assert "1 pairs" in text.split("weights other than 1")[1]


def test_with_colour_a_legend_and_no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    show_pairs([STANDARD_ROW], character_tokenizer(), stream=stream)
    text = stream.getvalue()
    assert COLOUR_LEGEND in text
    assert "⟦" not in text
    assert "38;5;40m" in text  # green


def test_the_margins_that_a_config_reads_are_shown(tmp_path: Path, capsys: Any) -> None:
    """And a row without one is refused, as training refuses it."""
    rows = tmp_path / "rows.jsonl"
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {TINY}\ntrain_data: {rows}\nmargin_weight: 1.0\n")
    rows.write_text(json.dumps({**STANDARD_ROW, "margin": 0.5}) + "\n")
    assert main(["inspect", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["margin"] == 0.5
    rows.write_text(json.dumps(STANDARD_ROW) + "\n")
    assert main(["inspect", str(config)]) == 2
    assert "field 'margin': is missing" in capsys.readouterr().err
