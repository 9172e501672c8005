"""Every published format, from every kind of source, becomes the same pairs."""

import json
import typing
from pathlib import Path
from typing import Any

import datasets
import pytest
from trl.data_utils import extract_prompt

from prefkit.data import Pair, load_rows, read_pairs
from prefkit.data.formats.detect import FORMATS
from prefkit.data.formats.fields.blocks import BLOCK_STYLES
from prefkit.errors import PrefkitError, RowError
from prefkit.options.prompt import BlockStyle, RowFormat
from tests.data.data_cases import (
    CONVERSATION_ROW,
    IMPLICIT_CONVERSATION_ROW,
    IMPLICIT_ROW,
    STANDARD_ROW,
    STEP_ROW,
    TDPO_FILE,
    cdpo_scored_file,
    character_tokenizer,
    scdpo_row,
)

ROWS = [STEP_ROW, {**STEP_ROW, "prompt": "Another question?"}]


def _texts(pairs: list[Pair]) -> list[Any]:
    return [(p.prompt, p.prefix, p.chosen, p.rejected, p.append_eos, p.row) for p in pairs]


def _write(path: Path, kind: str) -> Any:
    if kind == "jsonl":
        text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
        path.with_suffix(".jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    elif kind == "json":
        path.with_suffix(".json").write_text(json.dumps(ROWS))
    elif kind == "lines named json":
        path = path.with_suffix(".json")
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
        return path
    elif kind == "columns":
        path = path.with_suffix(".json")
        columns = {name: [row[name] for row in ROWS] for name in STEP_ROW}
        path.write_text(json.dumps({**columns, "config": {"kept": "out"}}))
        return path
    elif kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(path.with_suffix(".parquet")))
    elif kind == "folder":
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
        return path
    return path.with_suffix(f".{kind}")


@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "lines named json", "columns", "parquet", "folder"]
)
def test_files_of_all_kinds_hold_the_same_pairs(tmp_path: Path, kind: str) -> None:
    source = _write(tmp_path / "rows", kind)
    assert _texts(read_pairs(source)) == _texts(read_pairs(ROWS))
    assert read_pairs(str(source))[1].source == str(source)


def test_dataset_objects(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    expected = _texts(read_pairs(ROWS))
    assert _texts(read_pairs(dataset)) == expected
    assert _texts(read_pairs(dataset.with_format("numpy"))) == expected
    some = dataset.to_iterable_dataset().take(len(ROWS))
    assert _texts(read_pairs(datasets.Dataset.from_list(list(some)))) == expected
    with pytest.raises(PrefkitError, match="is a stream"):
        read_pairs(some)
    splits = datasets.DatasetDict({"train": dataset, "test": dataset.select([1])})
    assert _texts(read_pairs(splits)) == expected
    assert len(read_pairs(splits, split="test")) == 1
    with pytest.raises(PrefkitError, match=r"no split 'dev'.*train, test"):
        read_pairs(splits, split="dev")


def test_nested_rows_survive_parquet(tmp_path: Path) -> None:
    for row in (scdpo_row(), CONVERSATION_ROW):
        datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / "rows.parquet"))
        assert _texts(read_pairs(tmp_path / "rows.parquet")) == _texts(read_pairs([row]))
    row = {**STANDARD_ROW, "chosen_weights": [[7, 0.5], [9, 1.0]], "chosen_spans": None}
    datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / "rows.parquet"))
    weights = read_pairs(tmp_path / "rows.parquet")[0].chosen.token_weights
    assert weights is not None
    assert weights.tokens == (7, 9)


def test_step_dpo_levels() -> None:
    step, whole = read_pairs([STEP_ROW])[0], read_pairs([STEP_ROW], level="solution")[0]
    assert step.prefix == whole.prefix == STEP_ROW["initial_reason_steps"]
    assert (step.chosen.text, step.append_eos) == (STEP_ROW["chosen"], False)
    assert (whole.chosen.text, whole.append_eos) == (STEP_ROW["full_chosen"], True)
    # A first step is wrong as well: an empty front is still a front.
    assert not read_pairs([{**STEP_ROW, "initial_reason_steps": ""}])[0].append_eos


def test_scdpo_front_is_the_prefix_and_naive_rows_have_none() -> None:
    pair = read_pairs([scdpo_row()])[0]
    assert pair.prompt == (
        {"role": "system", "content": ""},
        {"role": "user", "content": "What is 12 times 12?"},
    )
    assert pair.prefix == "Let me compute it with code.\n"
    assert pair.chosen.text == "print(12 * 12)\n144\nThe answer is 144."
    assert [pair.chosen.text[a:b] for a, b in pair.chosen.masked] == ["\n144\n"]
    assert pair.append_eos
    naive = {
        side: [m for m in ms if m["role"] != "assistant_correct"]
        for side, ms in scdpo_row().items()
    }
    assert read_pairs([naive])[0].prefix == ""
    empty = json.loads(json.dumps(scdpo_row()))
    for side in empty.values():
        side[2]["content"] = []
    assert read_pairs([empty])[0].prefix == ""


def test_content_may_be_a_plain_string() -> None:
    row = json.loads(json.dumps(scdpo_row()))
    for side in row.values():
        side[1]["content"] = "What is 12 times 12?"
        side[2]["content"] = "Let me compute it with code."
    assert _texts(read_pairs([row])) == _texts(read_pairs([scdpo_row()]))


def test_cdpo_weights_are_one_minus_the_score() -> None:
    data = cdpo_scored_file(character_tokenizer())
    pair = read_pairs(data)[0]
    scores = data["prob_result"][0]["neg"]["ce_prob"]
    assert pair.chosen.token_weights is None
    assert pair.rejected.token_weights is not None
    assert pair.rejected.token_weights.weights == tuple(1 - s for s in scores)
    unscored = {k: v for k, v in data.items() if k != "prob_result"}
    assert read_pairs(unscored)[0].rejected.token_weights is None


def test_tdpo_layout() -> None:
    pairs = read_pairs(TDPO_FILE)
    assert [p.rejected.text for p in pairs] == [" Two cats have 6 legs.", " Many."]
    assert {p.chosen.text for p in pairs} == {" Two cats have 8 legs."}
    assert all(p.append_eos and p.row == 0 for p in pairs)
    (prompt, entry) = next(iter(TDPO_FILE.items()))
    assert _texts(read_pairs([{"prompt": prompt, **entry}])) == _texts(pairs)


@pytest.mark.parametrize(
    "row",
    [
        IMPLICIT_ROW,
        {"chosen": "The sky is blue", "rejected": "The sky is black"},
        {"chosen": "Q: two?  A: 2", "rejected": "Q: two?  B"},
    ],
)
def test_implicit_prompt_as_in_trl(row: dict[str, str]) -> None:
    pair, theirs = read_pairs([row])[0], extract_prompt(row)
    ours = {"prompt": pair.prompt, "chosen": pair.chosen.text, "rejected": pair.rejected.text}
    assert ours == theirs


def test_conversations_with_the_prompt_given_implicit_or_both() -> None:
    explicit = read_pairs([CONVERSATION_ROW])
    assert explicit[0].chosen.text == "It is blue."
    for extra in ({}, {"prompt": "What color is the sky?"}, {"prompt": CONVERSATION_ROW["prompt"]}):
        assert _texts(read_pairs([{**extra, **IMPLICIT_CONVERSATION_ROW}])) == _texts(explicit)


def test_mixed_rows_in_one_source() -> None:
    pairs = read_pairs([STEP_ROW, scdpo_row(), STANDARD_ROW, CONVERSATION_ROW])
    assert [p.append_eos for p in pairs] == [False, True, True, True]
    assert [p.row for p in pairs] == [0, 1, 2, 3]


OWN_STEP = {"prompt": "Q", "prefix": "a\n", "chosen": "b\n", "rejected": "c\n"}


def test_own_rows_with_full_solutions_serve_both_levels() -> None:
    row = {**OWN_STEP, "full_chosen": "b\nd\n", "full_rejected": "c\ne\n"}
    step, whole = (read_pairs([row], level=level)[0] for level in ("step", "solution"))
    assert (step.prefix, step.chosen.text, step.append_eos) == ("a\n", "b\n", False)
    assert (whole.prefix, whole.chosen.text, whole.append_eos) == ("a\n", "b\nd\n", True)
    assert read_pairs([row], level="auto")[0] == whole


@pytest.mark.parametrize("row", [OWN_STEP, {**OWN_STEP, "prefix": ""}, STEP_ROW])
def test_level_auto_asks_where_responses_after_a_prefix_end(row: dict) -> None:
    """Appending an end token after a step would teach the model to stop there: never by guess."""
    row = {key: value for key, value in row.items() if not key.startswith("full_")}
    with pytest.raises(
        RowError, match=r"leaves open where.*level: step .* append_eos into the row"
    ):
        read_pairs([row], level="auto")
    for ends in (True, False):
        assert read_pairs([{**row, "append_eos": ends}], level="auto")[0].append_eos is ends


def test_a_named_format_is_held_to() -> None:
    with pytest.raises(RowError, match="row 0, field 'initial_reason_steps': is missing"):
        read_pairs([STANDARD_ROW], format="step-dpo")
    with pytest.raises(PrefkitError, match="Choose one of: auto, prefkit, trl, step-dpo"):
        read_pairs([STANDARD_ROW], format="stepdpo")


def test_a_bad_line_is_an_item_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(STANDARD_ROW).encode()
    path.write_bytes(good + b"\n" + b'{"prompt": "caf\xe9"}\n' + good + b"\n{\n")
    rows = list(load_rows(path))
    assert [isinstance(row, RowError) for row in rows] == [False, True, False, True]


def test_a_single_json_object_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    for row in (STEP_ROW, CONVERSATION_ROW, scdpo_row()):
        path.write_text(json.dumps(row, indent=1))
        assert _texts(read_pairs(path)) == _texts(read_pairs([row]))


def test_every_format_can_be_asked_for_by_name() -> None:
    """The choices of --format stand in the options, the readers beside the formats."""
    assert {*typing.get_args(RowFormat)} == {"auto", *FORMATS}
    assert {*typing.get_args(BlockStyle)} == {*BLOCK_STYLES}
