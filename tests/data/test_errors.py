"""Bad rows: each has its one clear error with row, field and remedy, or is skipped and listed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefkit.data import ReadOptions, TokenizeOptions, prepare_pairs
from prefkit.errors import ConfigError, PrefkitError, RowError
from tests.data.data_cases import (
    CONVERSATION_ROW,
    STANDARD_ROW,
    STEP_ROW,
    cdpo_scored_file,
    character_tokenizer,
    scdpo_row,
)

TOKENIZER = character_tokenizer()
GOOD = STANDARD_ROW
LONE_SURROGATE = json.loads('"\\ud83d"')


def _without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != field}


def _scored(**changes: Any) -> dict[str, Any]:
    """A cDPO row whose rejected side's result is changed."""
    data = cdpo_scored_file(TOKENIZER)
    row = {name: column[0] for name, column in data.items()}
    row["prob_result"]["neg"].update(changes)
    return row


def _scdpo(change: Any) -> dict[str, Any]:
    row = json.loads(json.dumps(scdpo_row()))
    change(row)
    return row


SCORES = _scored()["prob_result"]["neg"]["ce_prob"]

# id → (bad row, options of prepare_pairs, field, problem, remedy)
ROWS: dict[str, tuple[Any, dict[str, Any], str, str, str]] = {
    "no object": ("text", {}, "", "is a str, not an object", "Give one object"),
    "chosen missing": (_without(GOOD, "chosen"), {}, "chosen", "is missing", "Give every row"),
    "rejected null": ({**GOOD, "rejected": None}, {}, "rejected", "is null", "Give every row"),
    "prompt empty": ({**GOOD, "prompt": ""}, {}, "prompt", "is empty", "Fill it in"),
    "prompt a number": ({**GOOD, "prompt": 7}, {}, "prompt", "is a int", "Write a string"),
    "response blank": ({**GOOD, "chosen": " \n"}, {}, "chosen", "is empty", "Fill it in"),
    "chosen = rejected": (
        {**GOOD, "rejected": GOOD["chosen"]},
        {},
        "rejected",
        "is the same text",
        "Remove the row",
    ),
    "no common beginning": (
        {"chosen": "Yes.", "rejected": "No."},
        {},
        "prompt",
        "share no beginning",
        "Give the prompt",
    ),
    "lone surrogate": (
        {**GOOD, "chosen": f" 4{LONE_SURROGATE}"},
        {},
        "chosen",
        "broken character at position 2",
        "valid Unicode",
    ),
    "append_eos a word": (
        {**GOOD, "append_eos": "yes"},
        {},
        "append_eos",
        "is 'yes'",
        "Write true",
    ),
    "weights too few": (
        {**GOOD, "chosen_weights": [1.0]},
        {},
        "chosen_weights",
        "1 weights for a response of 3 tokens and its end-of-sequence token",
        "one weight a token",
    ),
    "weights too many": (
        {**GOOD, "prefix": "", "chosen_weights": [1.0] * 4},
        {},
        "chosen_weights",
        "4 weights for a response of 3 tokens",
        "one weight a token",
    ),
    "weight NaN": (
        {**GOOD, "chosen_weights": [1.0, float("nan"), 1.0]},
        {},
        "chosen_weights[1]",
        "is nan",
        "finite weight ≥ 0",
    ),
    "weight infinite": (
        {**GOOD, "rejected_weights": [[3, float("inf")]]},
        {},
        "rejected_weights[0]",
        "is inf",
        "finite weight ≥ 0",
    ),
    "weight negative": (
        {**GOOD, "rejected_spans": [[0, 1, -0.5]]},
        {},
        "rejected_spans[0]",
        "is -0.5",
        "finite weight ≥ 0",
    ),
    "weight a word": (
        {**GOOD, "chosen_weights": ["high"] * 3},
        {},
        "chosen_weights[0]",
        "is 'high', not a number",
        "finite weight ≥ 0",
    ),
    "weights all zero": (
        {**GOOD, "chosen_weights": [0, 0, 0, 0]},
        {},
        "chosen_weights",
        "no token with a weight above 0",
        "one weight above 0",
    ),
    "weights of other ids": (
        {**GOOD, "chosen_weights": {"ids": [900, 901, 902], "weights": [1, 1, 1]}},
        {},
        "chosen_weights",
        "made for other tokens: token 0 is 900 there",
        "Score the row again",
    ),
    "more ids than weights": (
        {**GOOD, "chosen_weights": {"ids": [1, 2], "weights": [1]}},
        {},
        "chosen_weights",
        "2 tokens but 1 weights",
        "one weight",
    ),
    "span outside": (
        {**GOOD, "chosen_spans": [[0, 99, 1.0]]},
        {},
        "chosen_spans[0]",
        "[0, 99) of a text of 3 characters",
        "0 ≤ start < end",
    ),
    "spans overlap": (
        {**GOOD, "chosen_spans": [[0, 2, 1.0], [1, 3, 2.0]]},
        {},
        "chosen_spans",
        "overlap",
        "at most one weight",
    ),
    "spans and weights": (
        {**GOOD, "chosen_spans": [[0, 1, 1.0]], "chosen_weights": [1, 1, 1]},
        {},
        "chosen_spans",
        "together with 'chosen_weights'",
        "not both",
    ),
    "no full solution": (
        _without(STEP_ROW, "full_rejected"),
        {"reading": ReadOptions(level="solution")},
        "full_rejected",
        "is missing",
        'level "step"',
    ),
    "front repeated": (
        {**STEP_ROW, "full_chosen": STEP_ROW["initial_reason_steps"] + STEP_ROW["full_chosen"]},
        {"reading": ReadOptions(level="solution")},
        "full_chosen",
        "repeats initial_reason_steps",
        "Let it continue after them",
    ),
    "fronts differ": (
        _scdpo(lambda row: row["rejected"][2].update(content="Something else.")),
        {},
        "rejected",
        "another assistant_correct front",
        "same correct steps",
    ),
    "questions differ": (
        _scdpo(lambda row: row["rejected"][1].update(content="Another question?")),
        {},
        "rejected",
        "another front",
        "share all but their last message",
    ),
    "unknown block": (
        _scdpo(lambda row: row["chosen"][3]["content"][0].update(type="image")),
        {},
        "chosen.assistant[0]",
        "has the type 'image'",
        '"text"|"code"|"execution"',
    ),
    "nothing but tool output": (
        _scdpo(lambda row: row["chosen"][3].update(content=row["chosen"][3]["content"][1:2])),
        {},
        "chosen",
        "has no scored token",
        "Unmask",
    ),
    "no assistant at the end": (
        {**CONVERSATION_ROW, "chosen": [{"role": "user", "content": "Blue?"}]},
        {},
        "chosen",
        "ends with a message of role 'user'",
        "assistant's response",
    ),
    "one side messages": (
        {**CONVERSATION_ROW, "rejected": "It is green."},
        {},
        "rejected",
        "not a list of messages",
        '{"role": …, "content": …}',
    ),
    "tools": (
        {**CONVERSATION_ROW, "tools": [{"name": "calculator"}]},
        {},
        "tools",
        "not read by the chat template",
        "Set chat_template",
    ),
    "ce_prob missing": (
        _scored(ce_prob=None),
        {},
        "prob_result.neg.ce_prob",
        "is missing",
        "Score the row again",
    ),
    "ce_prob of other length": (
        _scored(ce_prob=SCORES[:-1]),
        {},
        "prob_result.neg.ce_prob",
        f"{len(SCORES) - 1} scores",
        "Score the row again",
    ),
    "ce_prob no probability": (
        _scored(ce_prob=[*SCORES[:-1], 3.0]),
        {},
        f"prob_result.neg.ce_prob[{len(SCORES) - 1}]",
        "is 3.0, not a probability",
        "Score the row again",
    ),
    "scores of another text": (
        _scored(text="3 + 4 = 9"),
        {},
        "prob_result.neg.text",
        "not the response",
        "Score the row again",
    ),
    "pair index out of range": (
        {"prompt": "Q", "responses": ["a", "b"], "pairs": [[0, 2]]},
        {},
        "pairs[0]",
        "has the index 2 of 2 responses",
        "two different indices",
    ),
    "pair with itself": (
        {"prompt": "Q", "responses": ["a", "b"], "pairs": [[1, 1]]},
        {},
        "pairs[0]",
        "with itself",
        "two different indices",
    ),
    "too long": (
        GOOD,
        {"options": TokenizeOptions(max_length=9)},
        "chosen",
        "has 12 tokens with its prompt, more than max_length 9",
        "Raise max_length",
    ),
    "truncation would cut the step": (
        STEP_ROW,
        {"options": TokenizeOptions(max_length=100, too_long="truncate_end")},
        "chosen",
        "a single step is never cut",
        "Raise max_length",
    ),
    "truncation removes the difference": (
        {"prompt": "Q", "chosen": " the same 1", "rejected": " the same 2"},
        {"options": TokenizeOptions(max_length=8, too_long="truncate_end")},
        "rejected",
        "is the same tokens as 'chosen'",
        "raise max_length",
    ),
    "id beyond the vocabulary": (
        GOOD,
        {"vocab_size": 20},
        "chosen",
        "but the model knows 20 tokens",
        "tokenizer that belongs to the model",
    ),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_bad_row_has_one_clear_error(name: str) -> None:
    row, options, field, problem, remedy = ROWS[name]
    rows = [row] if options else [STEP_ROW, row]  # with options the good row might fail as well
    with pytest.raises(RowError) as caught:
        prepare_pairs(rows, TOKENIZER, **options)
    message = str(caught.value)
    assert caught.value.row == len(rows) - 1
    assert caught.value.field == field
    assert message.startswith(f"rows in memory: row {len(rows) - 1}")
    assert problem in message
    assert remedy in message


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"id beyond the vocabulary"}))
def test_bad_row_can_be_skipped_and_is_listed(name: str, tmp_path: Path) -> None:
    row, options, field, problem, _ = ROWS[name]
    good = {"prompt": "Q", "chosen": "1", "rejected": "2"}  # short: fits every limit above
    listing = tmp_path / "new folder" / "skipped.jsonl"
    given = options.get("reading", ReadOptions())
    reading = replace(given, on_bad_row="skip", skipped_file=listing)
    dataset = prepare_pairs([good, row, good], TOKENIZER, **{**options, "reading": reading})
    assert len(dataset) == 2
    assert dataset.report.skipped.total() == 1
    (entry,) = [json.loads(line) for line in listing.read_text().splitlines()]
    assert (entry["source"], entry["row"], entry["field"]) == ("rows in memory", 1, field)
    assert problem in f"{entry['problem']}"
    assert entry["action"] == "skipped"


BROKEN_LINE = json.dumps(GOOD).encode() + b"\n\n{broken\n"
FILES: dict[str, tuple[str, bytes | None, str, str]] = {
    "missing": ("no.jsonl", None, "no such file", "Check the path"),
    "empty": ("empty.jsonl", b" \n", "the file is empty", "at least one pair"),
    "empty list": ("empty.json", b"[]", "holds no rows", "at least one pair"),
    "other type": (
        "rows.xlsx",
        b"a,b",
        "unknown file type '.xlsx'",
        ".json, .jsonl, .parquet, .csv",
    ),
    "broken line": ("rows.jsonl", BROKEN_LINE, "line 3 is not valid JSON", "Repair or remove"),
    "broken UTF-8": ("rows.jsonl", b'{"prompt": "\xff"}', "line 1 is not valid UTF-8", "UTF-8"),
    "line no object": ("rows.jsonl", b"[1]", "line 1 is a list, not an object", "one JSON object"),
    "broken JSON": ("rows.json", b'[{"a": 1},\n{"a": }]', "line 2, column 7", "Repair the file"),
    "broken UTF-8 in JSON": ("rows.json", b'[\n"\xff"]', "line 2 is not valid UTF-8", "as UTF-8"),
    "bare number": ("rows.json", b"3", "is a bare int", "a list of objects"),
    "empty object": ("rows.json", b"{}", "is empty", "a list of objects"),
    "uneven columns": (
        "rows.json",
        b'{"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e"]}',
        "row 1, field 'rejected': the columns have different lengths",
        "one entry a row",
    ),
    "broken parquet": ("rows.parquet", b"PAR1", "cannot be read as Parquet", "complete"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_bad_file_has_one_clear_error(name: str, tmp_path: Path) -> None:
    file, content, problem, remedy = FILES[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(PrefkitError) as caught:
        prepare_pairs(tmp_path / file, TOKENIZER)
    assert str(tmp_path / file) in str(caught.value)
    assert problem in str(caught.value)
    assert remedy in str(caught.value)


def test_broken_lines_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(BROKEN_LINE)
    listing = tmp_path / "skipped.jsonl"
    dataset = prepare_pairs(
        tmp_path / "rows.jsonl",
        TOKENIZER,
        reading=ReadOptions(on_bad_row="skip", skipped_file=listing),
    )
    assert dataset.report.skipped == {"whole row": 1}
    assert "line 3" in listing.read_text()


def test_folders_and_hub_names_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PrefkitError, match=r"neither one written by Dataset\.save_to_disk nor"):
        prepare_pairs(tmp_path, TOKENIZER)

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(PrefkitError, match=r"some/name: is no file .* split 'train' .*no route"):
        prepare_pairs("some/name", TOKENIZER)


def test_objects_that_are_no_source() -> None:
    with pytest.raises(PrefkitError, match="rows cannot be read from a int"):
        prepare_pairs(7, TOKENIZER)


def test_unwritable_listing_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reading = ReadOptions(skipped_file=tmp_path / "file" / "skipped.jsonl")
    with pytest.raises(PrefkitError, match=r"cannot be written .* another skipped_file"):
        prepare_pairs([GOOD], TOKENIZER, reading=reading)


def test_nothing_left_is_an_error_that_names_the_first_cause(tmp_path: Path) -> None:
    listing = tmp_path / "skipped.jsonl"
    with pytest.raises(PrefkitError, match=r"no usable pair, 1 were skipped.*row 0, chosen: is m"):
        prepare_pairs(
            [{"prompt": "Q"}],
            TOKENIZER,
            reading=ReadOptions(on_bad_row="skip", skipped_file=listing),
        )
    assert listing.exists()


def test_too_long_rows_are_skipped_by_their_own_choice(tmp_path: Path) -> None:
    listing = tmp_path / "skipped.jsonl"
    options = TokenizeOptions(max_length=20, too_long="skip")
    dataset = prepare_pairs([STEP_ROW, GOOD], TOKENIZER, options, ReadOptions(skipped_file=listing))
    assert dataset.report.skipped == {"too long": 1}
    with pytest.raises(RowError, match="is missing"):  # other faults still stop
        prepare_pairs([{"prompt": "Q"}, GOOD], TOKENIZER, options)
    options = TokenizeOptions(max_length=11, too_long="truncate_end")
    dataset = prepare_pairs([GOOD], TOKENIZER, options, ReadOptions(skipped_file=listing))
    entries = [json.loads(line) for line in listing.read_text().splitlines()]
    assert [(e["field"], e["action"]) for e in entries] == [
        ("chosen", "truncated"),
        ("rejected", "truncated"),
    ]
    prepare_pairs([GOOD], TOKENIZER, reading=ReadOptions(skipped_file=listing))
    assert not listing.exists()  # no list of an earlier run stays behind


def test_tokenizers_that_cannot_serve() -> None:
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(PrefkitError, match="SlowTokenizer is not a fast tokenizer"):
        prepare_pairs([GOOD], SlowTokenizer())
    bare = character_tokenizer()
    bare.chat_template = None
    with pytest.raises(RowError, match=r"row 0, field 'prompt': .*no chat template\. Give the tok"):
        prepare_pairs([CONVERSATION_ROW], bare)
    bare.eos_token = None
    with pytest.raises(RowError, match=r"append_eos.*tokenizer has none\. Set the tokenizer's eos"):
        prepare_pairs([GOOD], bare)
    strict = character_tokenizer(unknown=False)
    with pytest.raises(RowError, match=r"field 'rejected': holds '☃', for which .* no token"):
        prepare_pairs([{**GOOD, "rejected": " ☃ 5"}], strict)
    with pytest.raises(RowError, match="field 'prompt': holds '☃'"):
        prepare_pairs([{**GOOD, "prompt": "☃"}], strict)
    with pytest.raises(RowError, match="field 'chosen': holds '☃'"):
        prepare_pairs([{**GOOD, "chosen": " ☃4 "}], strict)


def test_template_that_refuses_the_roles() -> None:
    picky = character_tokenizer()
    picky.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowError, match=r"refused by the chat template .*roles must alternate"):
        prepare_pairs([CONVERSATION_ROW], picky)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "token"}, "level is 'token'. Choose one of: auto, step, solution"),
        ({"format": "rlhf"}, "format is 'rlhf'. Choose one of: auto"),
        ({"block_style": "xml"}, "block_style is 'xml'. Choose one of: plain, tagged"),
        ({"on_bad_row": "warn"}, "on_bad_row is 'warn'. Choose one of: error, skip"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_pairs([GOOD], TOKENIZER, reading=ReadOptions(**options))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"too_long": "cut"}, "too_long is 'cut'; it must be one of error, skip, truncate_end"),
        ({"string_prompts": "html"}, "string_prompts is 'html'"),
        ({"max_length": 1}, "max_length is 1. Give at least 2"),
        ({"prompt_template": "Q:"}, "Write {prompt} where the question goes"),
    ],
)
def test_bad_tokenize_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TokenizeOptions(**options)
    assert message in str(caught.value)


def test_chat_templates_are_read_from_files_and_never_lose_the_question(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    options = {"string_prompts": "chat", "chat_template": str(path)}
    pair = prepare_pairs([GOOD], TOKENIZER, TokenizeOptions(**options)).pairs[0]
    assert TOKENIZER.decode(pair.chosen.ids).startswith(f"<{GOOD['prompt']}>")
    for template, words in (
        (str(tmp_path / "nope.jinja"), "is a file that cannot be read"),
        ("qwen", "does not write the messages' content"),
    ):
        with pytest.raises(ConfigError, match=f"chat_template .*{words}.*plain"):
            prepare_pairs([GOOD], TOKENIZER, TokenizeOptions(chat_template=template))
    forgetful = character_tokenizer()
    forgetful.chat_template = "{{ messages[0]['content'] }}"
    row = {**CONVERSATION_ROW, "prompt": [{"role": "system", "content": "Be brief."}]}
    row["prompt"] += CONVERSATION_ROW["prompt"]
    with pytest.raises(RowError, match=r"field 'prompt': is lost in the chat template.*'Be brief"):
        prepare_pairs([row], forgetful)


def test_template_variables_that_are_no_object() -> None:
    with pytest.raises(ConfigError, match=r"chat_template_kwargs is 'x'\. Write an object"):
        TokenizeOptions(chat_template_kwargs="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("chosen_wieghts", "chosen_weights"),
        ("rejected_span", "rejected_spans"),
        ("Append_EOS", "append_eos"),
        ("initial_reasoning_steps", "initial_reason_steps"),
    ],
)
def test_misspelt_fields_are_refused(name: str, meant: str) -> None:
    with pytest.raises(RowError, match=f"row 1, field '{name}': .*Rename it to '{meant}'"):
        prepare_pairs([GOOD, {**GOOD, name: [1.0]}], TOKENIZER)
    assert len(prepare_pairs([GOOD, {**GOOD, name: None}], TOKENIZER)) == 2


def test_fields_of_other_meaning_are_ignored() -> None:
    names = ("prompt_id", "chosen_score", "rejected_lengths", "chosen_tokens", "answer", "source")
    row = {**GOOD, **dict.fromkeys(names, "x"), "chosen_weights_raw": 7}
    row["chosen_weights"] = [1.0, 0.5, 1.0]
    assert len(prepare_pairs([row], TOKENIZER)) == 1


ZEROS = {
    "list": {"chosen_weights": [0.0] * 3},
    "couples": {"chosen_weights": [[t, 0] for t in TOKENIZER(GOOD["chosen"])["input_ids"]]},
    "span": {"chosen_spans": [[0, 3, 0]]},
}


@pytest.mark.parametrize("name", list(ZEROS))
def test_weights_that_leave_only_the_implied_end_token_are_refused(name: str) -> None:
    field = next(iter(ZEROS[name]))
    message = f"'{field}': has no token with a weight above 0, so only the end.*Give one weight"
    with pytest.raises(RowError, match=message):
        prepare_pairs([{**GOOD, **ZEROS[name]}], TOKENIZER)


def test_scores_of_1_throughout_leave_nothing_to_train() -> None:
    bad = _scored(ce_prob=[1.0] * len(SCORES))
    with pytest.raises(RowError, match=r"prob_result\.neg\.ce_prob': has no token with a weight"):
        prepare_pairs([bad], TOKENIZER)


def test_an_end_token_weighted_by_the_row_may_stand_alone() -> None:
    row = {**GOOD, "chosen_weights": [0.0, 0.0, 0.0, 1.0]}
    report = prepare_pairs([row], TOKENIZER).report
    assert (report.zero_weight, report.scored["chosen"]) == (3, 4)


@pytest.mark.parametrize(("shift", "fits"), [(-2, False), (-1, True), (1, True), (2, False)])
def test_scores_that_begin_elsewhere_than_the_response_are_refused(shift: int, fits: bool) -> None:
    row = _scored()
    result = row["prob_result"]["neg"]
    result["response_start_idx"] += shift
    result["text"] = row["rejected"][max(shift, 0) :]
    if fits:
        assert len(prepare_pairs([row], TOKENIZER)) == 1
        return
    with pytest.raises(RowError, match=r"neg\.response_start_idx': is \d+, but .* Correct it"):
        prepare_pairs([row], TOKENIZER)
