"""Bad rows by choice: each kind stops or is left out, counted and listed under its name."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefkit.data import ReadOptions, TokenizeOptions, prepare_pairs, prepare_solutions
from prefkit.errors import ConfigError, EmptyError, EqualError, RowError, TooLongError
from tests.data.data_cases import character_tokenizer

TOKENIZER = character_tokenizer()
GOOD = {"prompt": "2+2=", "chosen": " 4", "rejected": " 5"}
ROWS: dict[str, tuple[dict[str, Any], str, type[RowError]]] = {
    "equal texts": ({**GOOD, "rejected": " 4"}, "equal", EqualError),
    "no prompt, equal texts": ({"chosen": "2+2= 4", "rejected": "2+2= 4"}, "equal", EqualError),
    "equal messages": (
        {
            "prompt": [{"role": "user", "content": "?"}],
            "chosen": [{"role": "assistant", "content": "4"}],
            "rejected": [{"role": "assistant", "content": "4"}],
        },
        "equal",
        EqualError,
    ),
    "empty response": ({**GOOD, "rejected": ""}, "empty", EmptyError),
    "no response": ({**GOOD, "chosen": None}, "empty", EmptyError),
    "blank prompt": ({**GOOD, "prompt": " \n"}, "empty", EmptyError),
    "no message": (
        {"prompt": "?", "chosen": [], "rejected": [{"role": "assistant", "content": "4"}]},
        "empty",
        EmptyError,
    ),
    "no rejected response": ({**GOOD, "rejected": []}, "empty", EmptyError),
    "an assistant that says nothing": (
        {
            "prompt": [{"role": "user", "content": "?"}],
            "chosen": [{"role": "assistant", "content": "4"}],
            "rejected": [{"role": "assistant", "content": " "}],
        },
        "empty",
        EmptyError,
    ),
}


def prepared(rows: list[dict[str, Any]], length: int | None = None, **options: Any) -> Any:
    too_long = options.pop("too_long", "error")
    texts = TokenizeOptions(max_length=length, too_long=too_long, chat_template="plain")
    return prepare_pairs(rows, TOKENIZER, texts, ReadOptions(**options))


@pytest.mark.parametrize("case", ROWS)
def test_each_kind_stops_or_is_left_out_by_its_own_option(case: str, tmp_path: Path) -> None:
    row, kind, error = ROWS[case]
    other = {"equal": "empty", "empty": "equal"}[kind]
    for options in ({}, {other: "skip"}):
        with pytest.raises(error, match=rf"row 1.*Or set {kind} to \"skip\"|NothingLeft"):
            prepared([GOOD, row], **options)
    listed = tmp_path / "listed.jsonl"
    for options in ({kind: "skip"}, {"on_bad_row": "skip"}):
        found = prepared([GOOD, row, GOOD], skipped_file=listed, **options)
        assert [pair.row for pair in found.pairs] == [0, 2]
        assert found.report.skipped == {kind: 1}
        assert f"1 skipped: {kind} (1)" in found.report.summary()
        assert json.loads(listed.read_text())["row"] == 1


def test_a_row_of_another_kind_still_stops() -> None:
    with pytest.raises(RowError, match="is missing"):
        prepared([GOOD, {"prompt": "?", "chosen": "x"}], empty="skip", equal="skip")


def test_what_a_cut_leaves_equal_is_equal() -> None:
    row = {"prompt": "abc", "chosen": " same, but then other", "rejected": " same, and then not"}
    cut: dict[str, Any] = {"length": 8, "too_long": "truncate_end"}
    with pytest.raises(EqualError, match="the same tokens"):
        prepared([GOOD, row], **cut)
    assert prepared([GOOD, row], equal="skip", **cut).report.skipped == {"equal": 1}


def test_a_prompt_that_fills_max_length_leaves_an_empty_response() -> None:
    rows = [GOOD, {"prompt": "much too long a prompt", "chosen": " 4", "rejected": " 5"}]
    with pytest.raises(TooLongError, match=r'the prompt is never cut.*set empty to "skip"'):
        prepared(rows, length=8, too_long="truncate_end")
    for options in ({"too_long": "truncate_end", "empty": "skip"}, {"too_long": "skip"}):
        found = prepared(rows, length=8, **options)
        assert found.report.skipped == {"too long": 1}
    with pytest.raises(TooLongError, match="max_length 8"):  # it is not empty where nothing is cut
        prepared(rows, length=8, empty="skip")


def test_rows_left_out_are_other_rows_to_a_cache_of_them() -> None:
    """The fingerprint, by which caches know their rows, is that of the rows that are left."""
    rows = [GOOD, {**GOOD, "rejected": ""}]
    assert prepared(rows, empty="skip").fingerprint == prepared([GOOD]).fingerprint
    assert prepared([GOOD, GOOD]).fingerprint != prepared([GOOD]).fingerprint


def test_solutions_too() -> None:
    rows = [{"prompt": "2+2=", "response": " 4"}, {"prompt": "2+2=", "response": " "}]
    with pytest.raises(EmptyError, match="row 1"):
        prepare_solutions(rows, TOKENIZER)
    report = prepare_solutions(rows, TOKENIZER, empty="skip").report
    assert (report.used, report.skipped) == (1, {"empty": 1})


@pytest.mark.parametrize("name", ["on_bad_row", "empty", "equal"])
def test_other_choices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 'drop'. Choose one of: error, skip"):
        ReadOptions(**{name: "drop"})
