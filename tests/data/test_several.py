"""Several rejected responses to one chosen one: a row of any format becomes that many pairs."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from prefkit.critical_tokens.fields import ScoreFields
from prefkit.critical_tokens.rows import ScorableReader
from prefkit.data import Pair, ReadOptions, TokenizeOptions, load_rows, prepare_pairs, read_pairs
from prefkit.data.groups import group_numbers
from prefkit.data.show import show_pairs
from prefkit.data.streamed.prepare import stream_pairs
from prefkit.data.text.render import Renderer
from prefkit.errors import RowError
from tests.data.data_cases import (
    CONVERSATION_ROW,
    STANDARD_ROW,
    STEP_ROW,
    TDPO_FILE,
    character_tokenizer,
    scdpo_row,
)

TOKENIZER = character_tokenizer()
SEVERAL = {**STANDARD_ROW, "rejected": [" 5.", " 6!", " no."]}
WRONG_AGAIN = [{"role": "assistant", "content": "It is red."}]


def _controlled(content: str) -> list[dict[str, Any]]:
    *front, last = scdpo_row()["rejected"]
    return [*front, {**last, "content": [{"type": "text", "content": content}]}]


# layout → (row, options, texts of the rejected responses)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "texts": (SEVERAL, {}, SEVERAL["rejected"]),
    "one text": ({**SEVERAL, "rejected": [" 5."]}, {}, [" 5."]),
    "conversations": (
        {**CONVERSATION_ROW, "rejected": [CONVERSATION_ROW["rejected"], WRONG_AGAIN]},
        {},
        ["It is green.", "It is red."],
    ),
    "one conversation": (CONVERSATION_ROW, {}, ["It is green."]),
    "scdpo": (
        {**scdpo_row(), "rejected": [_controlled("It is 24."), _controlled("It is 12.")]},
        {},
        ["It is 24.", "It is 12."],
    ),
    "single steps": (
        {**STEP_ROW, "rejected": [" a", " b"], "full_rejected": [" a!", " b!"]},
        {},
        [" a", " b"],
    ),
    "whole solutions": (
        {**STEP_ROW, "rejected": [" a", " b"], "full_rejected": [" a!", " b!"]},
        {"level": "solution"},
        [" a!", " b!"],
    ),
    "no prompt": (
        {"chosen": "The sky is blue.", "rejected": ["The sky is blew.", "The grass is wet."]},
        {},
        [" sky is blew.", " grass is wet."],
    ),
    "other names": (
        {"question": "2 + 2?", "chosen_response": "4", "rejected_response": ["5", "6"]},
        {},
        ["5", "6"],
    ),
    "columns": (
        {"ask": "2 + 2?", "good": "4", "bad": ["5", "6"]},
        {"columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"}},
        ["5", "6"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rejected_response_is_a_pair_with_the_same_rest(name: str) -> None:
    row, options, rejected = CASES[name]
    pairs = [pair for pair in read_pairs([row, row], **options) if pair.row == 1]
    assert [pair.rejected.text for pair in pairs] == rejected
    first, *others = pairs
    for pair in others:
        same = ("prompt", "prefix", "chosen", "append_eos", "source", "row")
        assert all(getattr(pair, field) == getattr(first, field) for field in same)


def test_without_a_prompt_it_is_what_all_responses_begin_with() -> None:
    pairs = read_pairs([CASES["no prompt"][0]])
    assert {(pair.prompt, pair.chosen.text) for pair in pairs} == {("The", " sky is blue.")}


@pytest.mark.parametrize("kind", ["jsonl", "json", "columns", "parquet", "dataset", "stream"])
def test_sources_of_all_kinds(tmp_path: Path, kind: str) -> None:
    rows = [SEVERAL, {**SEVERAL, "prompt": "2 + 3 is", "rejected": [" 4!"]}]
    source: Any = tmp_path / f"rows.{'json' if kind == 'columns' else kind}"
    if kind == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        source.write_text(json.dumps(rows))
    elif kind == "columns":
        source.write_text(json.dumps({name: [row[name] for row in rows] for name in SEVERAL}))
    elif kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(source))
    else:
        source = datasets.Dataset.from_list(rows)
    if kind == "stream":
        made = iter(
            stream_pairs(source.to_iterable_dataset(), TOKENIZER, TokenizeOptions(), ReadOptions())
        )
        found = [pair for _, pair in (next(made) for _ in range(4))]
    else:
        dataset = prepare_pairs(source, TOKENIZER)
        found = dataset.pairs
        assert sum(dataset.report.sources.values()) == 2
        assert dataset.report.pairs == 4
        assert "4 pairs from 2 rows of" in dataset.report.summary()
    assert [pair.row for pair in found] == [0, 0, 0, 1]
    assert group_numbers(found).tolist() == [0, 0, 0, 1]


def test_a_cell_of_csv_holds_several_conversations_and_one_text(tmp_path: Path) -> None:
    several = CASES["conversations"][0]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(several)
        writer.writerow([json.dumps(value) for value in several.values()])
    assert [pair.rejected.text for pair in read_pairs(path)] == CASES["conversations"][2]
    path.write_text('prompt,chosen,rejected\nWhich list?,"[1]","[2]"\n')
    assert [pair.rejected.text for pair in read_pairs(path)] == ["[2]"]


def test_what_speaks_of_a_rejected_response_has_an_entry_for_each() -> None:
    row = {
        **SEVERAL,
        "rejected_spans": [[[1, 2, 0.5]], None, [[0, 3, 0.25]]],
        "margin": [1, 2.5, -1],
    }
    pairs = prepare_pairs([row], TOKENIZER, reading=ReadOptions(margins=True)).pairs
    assert [pair.margin for pair in pairs] == [1.0, 2.5, -1.0]
    weights = [pair.rejected.weights[pair.rejected.scored].tolist() for pair in pairs]
    assert weights == [[1, 0.5, 1, 1], [1, 1, 1, 1], [0.25, 0.25, 0.25, 1, 1]]
    row = {**SEVERAL, "margin": 2, "rejected_weights": [[0.5] * 4, None, None]}
    pairs = prepare_pairs([row], TOKENIZER, reading=ReadOptions(margins=True)).pairs
    assert [pair.margin for pair in pairs] == [2.0, 2.0, 2.0]
    assert pairs[0].rejected.weights[pairs[0].rejected.scored].tolist() == [0.5] * 4


TURNS = [*CONVERSATION_ROW["prompt"], *CONVERSATION_ROW["chosen"], *CONVERSATION_ROW["prompt"]]
# id → (change of the row, field, problem)
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "none": ({"rejected": []}, "rejected", "is an empty list"),
    "a list in a list": (
        {"rejected": [" 5.", [" 6."]]},
        r"rejected\[1\]",
        "is a list beside a str",
    ),
    "an empty list in it": ({"rejected": [" 5.", []]}, r"rejected\[1\]", "is a list beside a str"),
    "an empty text": ({"rejected": [" 5.", " "]}, r"rejected\[1\]", "is empty"),
    "null": ({"rejected": [None, " 5."]}, r"rejected\[0\]", "is null"),
    "the chosen one": ({"rejected": [" 5.", " 4."]}, r"rejected\[1\]", "is the same text"),
    "a number": ({"rejected": [" 5.", 6]}, r"rejected\[1\]", "is a int beside a str"),
    "one twice": ({"rejected": [" 5.", " 6.", " 5."]}, r"rejected\[2\]", "would count twice"),
    "several chosen": ({"chosen": [" 4.", " 4"]}, "chosen", "is a list, not text"),
    "weights of one": (
        {"rejected_weights": {"ids": [], "weights": []}},
        "rejected_weights",
        "dict",
    ),
    "too few": ({"rejected_weights": [[1.0], None]}, "rejected_weights", "2 entries for 3"),
    "bad weights": (
        {"rejected_weights": [None, [1.0, -1], None]},
        r"rejected_weights\[1\]\[1\]",
        "is -1",
    ),
    "bad span": (
        {"rejected_spans": [None, None, [[0, 9, 0.5]]]},
        r"rejected_spans\[2\]\[0\]",
        "covers",
    ),
    "too few margins": ({"margin": [1.0]}, "margin", "1 entries for 3"),
    "a margin of text": ({"margin": [1.0, "2", 3.0]}, r"margin\[1\]", "not a finite number"),
    "scores": ({"prob_result": {"neg": {}}}, "prob_result", "speaks of one rejected response"),
    "a full one for all": (
        {"prefix": "So", "full_chosen": " 4", "full_rejected": " 5"},
        "full_rejected",
        "is a str for 3",
    ),
    "other beginnings": (
        {
            "prompt": None,
            "chosen": [*TURNS, *CONVERSATION_ROW["chosen"]],
            "rejected": [[*TURNS, *WRONG_AGAIN], [*TURNS[:1], *WRONG_AGAIN]],
        },
        "prompt",
        "beginnings of different lengths",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_row_names_the_response(name: str) -> None:
    change, field, problem = REFUSED[name]
    with pytest.raises(RowError, match=rf"row 1, field '{field}': .*{problem}"):
        prepare_pairs(
            [{**SEVERAL, "margin": 1}, {**SEVERAL, "margin": 1, **change}],
            TOKENIZER,
            TokenizeOptions(chat_template="plain"),
            ReadOptions(margins=True),
        )


def test_a_bad_response_does_not_spoil_the_others(tmp_path: Path) -> None:
    listed = tmp_path / "skipped.jsonl"
    reading = ReadOptions(on_bad_row="skip", skipped_file=listed)
    dataset = prepare_pairs([{**SEVERAL, "rejected": [" 5.", "", " 6."]}], TOKENIZER, None, reading)
    assert (dataset.report.pairs, dataset.report.skipped) == (2, {"empty": 1})
    assert json.loads(listed.read_text())["field"] == "rejected[1]"
    assert group_numbers(dataset.pairs).tolist() == [0, 0]


def test_groups_are_rows_with_the_same_chosen_response() -> None:
    (prompt, entry), *_ = TDPO_FILE.items()
    tdpo = {prompt: {**entry, "pairs": [[0, 1], [1, 2], [0, 2]]}}
    sources = [load_rows([SEVERAL, SEVERAL]), load_rows(tdpo)]
    pairs = [pair for one in sources for pair in prepare_pairs(one, TOKENIZER).pairs]
    mixed = [pairs[i] for i in (8, 0, 3, 6, 1, 7, 2)]
    assert group_numbers(mixed).tolist() == [0, 1, 2, 0, 1, 3, 1]
    assert group_numbers(mixed).dtype == np.int64


def test_inspect_shows_each_pair() -> None:
    stream = io.StringIO()
    show_pairs([SEVERAL], TOKENIZER, stream=stream, as_json=True)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["pair"] for line in lines] == [0, 1, 2]
    texts = [
        "".join(t["text"] for t in line["tokens"] if t["segment"] == 2 * i + 1)
        for i, line in enumerate(lines)
    ]
    assert texts == [f"{text}<eos>" for text in SEVERAL["rejected"]]


@pytest.mark.parametrize("rejected", [[" 5.", " 6."], [" 5."]])
def test_rows_of_several_cannot_keep_scores(rejected: list[str]) -> None:
    reader = ScorableReader(Renderer(TOKENIZER, TokenizeOptions()), ScoreFields(), len(TOKENIZER))
    with pytest.raises(RowError, match="'rejected': is a list of responses"):
        reader.read(load_rows([{**SEVERAL, "rejected": rejected}]))


def test_pairs_are_what_separate_rows_give() -> None:
    rows = [{**SEVERAL, "rejected": one} for one in SEVERAL["rejected"]]
    together, apart = prepare_pairs([SEVERAL], TOKENIZER), prepare_pairs(rows, TOKENIZER)
    assert together.fingerprint == apart.fingerprint
    assert isinstance(read_pairs([SEVERAL])[0], Pair)
