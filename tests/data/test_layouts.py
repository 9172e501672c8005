"""Rows as other trainers lay them out are read as they mean it, or refused with what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from prefkit.data import Pair, TokenizeOptions, prepare_pairs, prepare_solutions, read_pairs
from prefkit.data.text.template import say_once
from prefkit.errors import ConfigError, PrefkitError, RowError
from tests.data.chat_cases import TOOLS, runs, tokenizer_for, used_tool
from tests.data.data_cases import character_tokenizer

USER = {"role": "user", "content": "2 + 2?"}
RIGHT, WRONG = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
BRIEF = {"role": "system", "content": "Be brief."}
SIDES = {"chosen": "4", "rejected": "5"}
GPT = {"chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}}

# layout → (row, the prompt as it is meant, its system text or None)
LAYOUTS: dict[str, tuple[dict[str, Any], Any, str | None]] = {
    "alpaca": ({"instruction": "Add.", "input": "2 + 2", **SIDES}, "Add.\n2 + 2", None),
    "alpaca without input": ({"instruction": "2 + 2?", "input": "", **SIDES}, "2 + 2?", None),
    "alpaca with system": (
        {"instruction": "2 + 2?", "input": "", "system": "Be brief.", **SIDES},
        "2 + 2?",
        "Be brief.",
    ),
    "alpaca with history": (
        {"instruction": "2 + 2?", "input": "", "history": [["Hi", "Hello"]], **SIDES},
        ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, USER),
        None,
    ),
    "alpaca, older": ({"instruction": "2 + 2?", "input": "", "output": ["4", "5"]}, "2 + 2?", None),
    "orca": ({"system": "Be brief.", "question": "2 + 2?", **SIDES}, "2 + 2?", "Be brief."),
    "orca, empty system": ({"system": "", "question": "2 + 2?", **SIDES}, "2 + 2?", ""),
    "argilla": (
        {"system": "Be brief.", "instruction": "2 + 2?"}
        | {"chosen_response": "4", "rejected_response": "5"},
        "2 + 2?",
        "Be brief.",
    ),
    "distilabel": ({"system": "Be brief.", "input": "2 + 2?", **SIDES}, "2 + 2?", "Be brief."),
    "system beside a prompt": (
        {"system": "Be brief.", "prompt": "2 + 2?", **SIDES},
        "2 + 2?",
        "Be brief.",
    ),
    "system beside messages": (
        {"system": "Be brief.", "prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]},
        (BRIEF, USER),
        None,
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "2 + 2?"}], **GPT}, (USER,), None),
    "sharegpt with system": (
        {"conversations": [{"from": "human", "value": "2 + 2?"}], "system": "Be brief.", **GPT},
        (BRIEF, USER),
        None,
    ),
    "axolotl": (
        {"messages": [BRIEF, USER], "chosen": RIGHT, "rejected": WRONG},
        (BRIEF, USER),
        None,
    ),
    "axolotl, one message": (
        {"prompt": "2 + 2?", "chosen": RIGHT, "rejected": WRONG},
        (USER,),
        None,
    ),
    "openrlhf": ({"chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, (USER,), None),
    "ultrafeedback": (
        {
            "prompt": "2 + 2?",
            "prompt_id": "7f",
            "chosen": [USER, RIGHT],
            "rejected": [USER, WRONG],
            "messages": [USER, RIGHT],
            "score_chosen": 8.0,
        },
        (USER,),
        None,
    ),
}


def said_by(pair: Pair) -> tuple[str, str]:
    return pair.chosen.text, pair.rejected.text


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("kind", ["memory", "jsonl", "arrow", "csv"])
def test_rows_of_other_trainers_mean_what_they_mean_there(
    layout: str, kind: str, tmp_path: Path
) -> None:
    row, prompt, system = LAYOUTS[layout]
    source: Any = [row]
    if kind == "jsonl":
        source = tmp_path / "rows.jsonl"
        source.write_text(json.dumps(row))
    elif kind == "arrow":
        source = Dataset.from_list([row])
    elif kind == "csv":
        source = tmp_path / "rows.csv"
        write_csv(source, row)
    (pair,) = read_pairs(source)
    assert (pair.prompt, pair.system, said_by(pair)) == (prompt, system, ("4", "5"))


def write_csv(path: Path, row: dict[str, Any]) -> None:
    import csv

    if isinstance(row.get("output"), list):
        pytest.skip("a couple of texts under one name is no table")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(row)
        writer.writerow([v if isinstance(v, str) else json.dumps(v) for v in row.values()])


def test_a_system_text_makes_a_chat_of_a_plain_prompt() -> None:
    tokenizer = character_tokenizer()
    plain = prepare_pairs([{"prompt": "2 + 2?", **SIDES}], tokenizer).pairs[0]
    row = LAYOUTS["orca"][0]
    chat = prepare_pairs([row], tokenizer, TokenizeOptions(prompt_template="Q: {prompt}")).pairs[0]
    assert tokenizer.decode(plain.chosen.ids) == "2 + 2?4<eos>"
    want = "[system]Be brief.<eos>[user]Q: 2 + 2?<eos>[assistant]4<eos>"
    assert tokenizer.decode(chat.chosen.ids) == want


def test_a_plain_prompt_beside_a_chat_template_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    say_once.cache_clear()
    rows = [{"prompt": f"{i} + 2?", **SIDES} for i in range(3)]
    for _ in range(2):
        prepare_pairs(rows, character_tokenizer())
    said = [record.message for record in caplog.records if "plain text" in record.message]
    assert len(said) == 1
    assert "string_prompts: chat" in said[0]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown question": (
        {"ask": "2 + 2?", **SIDES},
        r"field 'ask': holds text that is not read\. Say what it is, as columns: {prompt: ask}, or "
        r"leave it out, as columns: {ask: null}",
    ),
    "a question under a name that tells about rows": (
        {"task": "2 + 2?", "chosen": "It is 4", "rejected": "It is 5"},
        "field 'task': holds text that is not read",
    ),
    "a question in place of another": (
        {"prompt": "2 + 2?", "context": "Add.", **SIDES},
        r"'context': holds text that is not read\. Leave it out, as columns: {context: null}, or",
    ),
    "a text to translate": (
        {"source_text": "Hallo", "chosen": "Hello world", "rejected": "Hello planet"},
        "field 'source_text': holds text that is not read",
    ),
    "several unknown texts": (
        {"prompt": "2 + 2?", "rationale": "sum", "hints": ["add"], **SIDES},
        r"'rationale': \('rationale', 'hints'\) hold text that is not read.*"
        r"{rationale: null, hints: null}",
    ),
    "an input beside a prompt": (
        {"prompt": "Add.", "input": "2 + 2", **SIDES},
        "field 'input': holds text that is not read",
    ),
    "messages that say something else": (
        {"prompt": "2 + 2?", "messages": [USER, {"role": "assistant", "content": "7"}], **SIDES},
        "field 'messages': holds text that is not read",
    ),
    "another system text": (
        {"system": "Be long.", "prompt": [BRIEF, USER], "chosen": [RIGHT], "rejected": [WRONG]},
        "field 'system': is another text than the system message of the prompt",
    ),
    "a prompt that is not asked": (
        {"prompt": "3 + 3?", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
        "field 'prompt': is not what the conversations in chosen and rejected ask",
    ),
    "a speaker that nobody knows": (
        {"conversations": [{"from": "narrator", "value": "2 + 2?"}], **GPT},
        r"'conversations\[0\]': is said by 'narrator', which is no known speaker",
    ),
    "a turn that is not to be trained": (
        {"prompt": [USER], "chosen": [{**RIGHT, "weight": 0}, USER, RIGHT], "rejected": [WRONG]},
        r"field 'chosen\[0\]': asks that a message of the assistant's is not trained \('weight'\)",
    ),
    "calls that are no list": (
        {"prompt": [USER], "chosen": [{**RIGHT, "tool_calls": {"name": "f"}}], "rejected": [WRONG]},
        r"field 'chosen\[0\]': has tool_calls that are a dict",
    ),
    "steps in a column that nobody reads": (
        {"prompt": "2 + 2?", "previous_steps": "Step 1: 2 + 2", **SIDES},
        "field 'previous_steps': holds text that is not read",
    ),
    "an instruction in a column of labels": (
        {"prompt": "2 + 2?", "task": "Answer in French.", **SIDES},
        "field 'task': holds text that is not read",
    ),
    "pictures": (
        {"prompt": "2 + 2?", "images": ["a.png"], **SIDES},
        "field 'images': is no text",
    ),
    "tools beside plain text": (
        {"prompt": "2 + 2?", "tools": TOOLS, **SIDES},
        "field 'tools': speaks to the chat template, but the prompt is plain text",
    ),
    "variables beside plain text": (
        {"prompt": "2 + 2?", "chat_template_kwargs": {"enable_thinking": False}, **SIDES},
        "'chat_template_kwargs': speaks to the chat template, but the prompt is plain text",
    ),
    "tools that are no list": (
        {"prompt": [USER], "tools": {"name": "add"}, "chosen": [RIGHT], "rejected": [WRONG]},
        "field 'tools': is a dict. Write a list of schemas",
    ),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_no_text_is_passed_over(kind: str) -> None:
    row, message = REFUSED[kind]
    with pytest.raises(RowError, match=f"(?s)row 0, .*{message}"):
        prepare_pairs([row], character_tokenizer())


# Published datasets without a chosen side, the better answer "4".
OTHER_KINDS = {
    "UltraFeedback": {
        "instruction": "2 + 2?",
        "completions": [
            {"response": "5", "overall_score": 1.0},
            {"response": "4", "overall_score": 9.0},
        ],
    },
    "distilabel": {"instruction": "2 + 2?", "generations": ["4", "5"], "ratings": [5, 1]},
    "Nectar": {
        "prompt": "2 + 2?",
        "answers": [{"answer": "5", "rank": 2.0}, {"answer": "4", "rank": 1.0}],
    },
    "HelpSteer3": {
        "context": [USER],
        "response1": "4",
        "response2": "5",
        "overall_preference": -2,
    },
    "PKU-SafeRLHF": {
        "prompt": "2 + 2?",
        "response_0": "5",
        "response_1": "4",
        "better_response_id": 1,
    },
    "SHP": {"history": "2 + 2?", "human_ref_A": "4", "human_ref_B": "5", "labels": 1},
    "unpaired": {"prompt": "2 + 2?", "completion": "4", "label": True},
}


@pytest.mark.parametrize("name", list(OTHER_KINDS))
def test_rows_without_a_pair_come_with_the_lines_that_make_one(name: str) -> None:
    row = OTHER_KINDS[name]
    with pytest.raises(RowError, match="row 0, field '") as refused:
        prepare_pairs([row], character_tokenizer())
    lines = [line[2:] for line in str(refused.value).splitlines() if line.startswith("  ")]
    known = {"row": row, "good": row, "bad": {**row, "completion": "5"}}
    exec("\n".join(lines), known)
    assert (known["pair"]["chosen"], known["pair"]["rejected"]) == ("4", "5")
    (pair,) = read_pairs([known["pair"]])
    assert pair.prompt == "2 + 2?" or pair.prompt[0]["content"] == USER["content"]


def test_a_mixture_of_chats_and_plain_text_is_told() -> None:
    chat = {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]}
    tokenizer = character_tokenizer()
    options = TokenizeOptions(chat_template="plain")
    for rows, told in (([chat, {"prompt": "2 + 2?", **SIDES}], True), ([chat, chat], False)):
        report = prepare_pairs(rows, tokenizer, options).report
        assert ("1 pairs are written by the chat template, 1 are plain" in report.summary()) == told


@pytest.mark.parametrize(
    ("chosen", "rejected", "told"),
    [("Adding both: 4", "5", 1), ("4", "Adding both: 5", 0), ("Adding 4", "5", 0)],
)
def test_a_response_that_says_the_prefix_again_is_told(
    chosen: str, rejected: str, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    say_once.cache_clear()
    row = {"prompt": "2 + 2?", "prefix": "Adding both: ", "chosen": chosen, "rejected": rejected}
    with caplog.at_level("WARNING"):
        prepare_pairs([row, row], character_tokenizer())
    said = [record.message for record in caplog.records]
    assert sum("row 0: the response says again" in message for message in said) == told


def test_what_tells_about_a_row_is_no_text() -> None:
    yes = [{"role": "assistant", "content": "4", "weight": 1, "train": True}]
    assert len(read_pairs([{"prompt": [USER], "chosen": yes, "rejected": [WRONG]}])) == 1
    about = {
        "source": "a",
        "task": "mental arithmetic",
        "answer": "It is 4.",
        "model": "b",
        "category": "c",
        "chosen_model": "d",
        "meta": {"by": "e"},
    }
    assert len(read_pairs([{"prompt": "2 + 2?", **SIDES, **about, "score": 1.0}])) == 1


# -------------------------------------------------------------------------------------- columns


def test_columns_say_what_is_what() -> None:
    row = {"ask": "2 + 2?", "good": "4", "bad": "5", "notes": "x", "extra": {"front": "It is "}}
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad", "prefix": "extra.front"}
    (pair,) = read_pairs([row], columns={**columns, "notes": None, "extra": None})
    assert (pair.prompt, pair.prefix, said_by(pair)) == ("2 + 2?", "It is ", ("4", "5"))


def test_messages_about_a_mapped_field_name_its_column() -> None:
    columns = {"prompt": "ask", "chosen": "good"}
    with pytest.raises(RowError, match="row 0, field 'good': is a int, not text"):
        read_pairs([{"ask": "q", "good": 4, "rejected": "5"}], columns=columns)
    with pytest.raises(
        RowError, match=r"'prompt': is mapped to the column 'ask', which .*\(it has"
    ):
        read_pairs([{"question": "q", "good": "4", "rejected": "5"}], columns=columns)
    for wrong in ("ask", {"prompt": 3}, {"prompt": ""}):
        with pytest.raises(ConfigError, match=r"columns is .*Write an object"):
            read_pairs([{"ask": "q", **SIDES}], columns=wrong)  # type: ignore[arg-type]


def test_a_mapped_column_may_be_null_in_some_rows() -> None:
    rows = [{"q": "2 + 2?", "sys": system, **SIDES} for system in (None, "Be brief.")]
    columns = {"prompt": "q", "system": "sys"}
    for source in (rows, Dataset.from_list(rows)):
        assert [pair.system for pair in read_pairs(source, columns=columns)] == [None, "Be brief."]


# ------------------------------------------------------------------------------------------ tools


def test_arguments_of_other_calls_do_not_turn_up_through_arrow() -> None:
    """An Arrow table gives every call the arguments of all; a template would write them as null."""
    other = used_tool(3, "5", "qwen3")
    other[0]["tool_calls"][0]["function"]["arguments"] = {"b": "three"}
    row = {
        "prompt": [USER],
        "tools": TOOLS,
        "chosen": used_tool(2, "4", "qwen3"),
        "rejected": other,
    }
    tokenizer = tokenizer_for("qwen3")
    through_arrow = prepare_pairs(Dataset.from_list([row]), tokenizer)
    assert through_arrow.fingerprint == prepare_pairs([row], tokenizer).fingerprint


def test_calls_of_sharegpt_are_calls() -> None:
    call = {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 2}})}
    talk = [{"from": "human", "value": "2 + 2?"}]
    result = {"from": "observation", "value": "4"}
    row = {"conversations": [*talk, call, result], **GPT, "tools": json.dumps(TOOLS)}
    want = [USER, *used_tool(2, "4", "qwen3")[:2]]
    want[1] |= {"content": None}
    ours = {"prompt": want, "tools": TOOLS, "chosen": [RIGHT], "rejected": [WRONG]}
    tokenizer = tokenizer_for("qwen3")
    assert list(runs(row, tokenizer)) == list(runs(ours, tokenizer))


# -------------------------------------------------------------------------------------------- CSV


def test_csv_cells_are_texts_unless_they_are_objects(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "prompt,chosen,rejected,append_eos,chosen_weights\n"
        '"Sum, please:\n1, 2","[1, 2]","{3}",false,\n'
        'q,4,5,True,"[0.5, 1.0]"\n',
        encoding="utf-8-sig",
    )
    first, second = read_pairs(path)
    assert (first.prompt, said_by(first)) == ("Sum, please:\n1, 2", ("[1, 2]", "{3}"))
    assert (first.append_eos, second.append_eos) == (False, True)
    assert second.chosen.token_weights is not None
    assert second.chosen.token_weights.weights == (0.5, 1.0)


def test_a_conversation_in_a_cell_may_be_indented(tmp_path: Path) -> None:
    path, row = tmp_path / "rows.csv", {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]}
    cells = [json.dumps(side, indent=1).replace('"', '""') for side in row.values()]
    path.write_text("chosen,rejected\n" + ",".join(f'"{cell}"' for cell in cells) + "\n")
    assert read_pairs(path)[0].prompt == (USER,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,chosen,rejected\nq,4\n", "row 0: has 2 cells, the first line 3 names"),
        ("prompt,prompt\nq,4\n", "first line must name every column once"),
        ("prompt;chosen;rejected\nq;4;5\n", "are separated by ';', not by commas"),
        (",prompt,chosen,rejected\n0,q,4,5\n", r"is an index: pandas' to_csv\(index=False\)"),
        ("", "holds no rows|is empty"),
        (
            "prompt,chosen,rejected\nq,\"[{'role': 'assistant', 'content': '4'}]\",5\n",
            "field 'chosen': is no JSON .*Write the cell as JSON",
        ),
        ("prompt,chosen,rejected,tools\nq,4,5,[add\n", "field 'tools': is no JSON"),
    ],
)
def test_bad_csv_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(PrefkitError, match=message):
        read_pairs(path)


# ---------------------------------------------------------------------------- single solutions


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "response": [RIGHT]},
        {"prompt": [USER], "completion": [RIGHT]},
        {"messages": [USER, RIGHT]},
        {"messages": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    ],
)
def test_solutions_may_be_chats(row: dict[str, Any]) -> None:
    tokenizer = tokenizer_for("qwen3")
    (side,) = prepare_solutions([row], tokenizer).sides
    pair = prepare_pairs([{"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]}], tokenizer)
    assert side.ids.tolist() == pair.pairs[0].chosen.ids.tolist()


def test_solutions_pass_over_no_text_either() -> None:
    tokenizer = character_tokenizer()
    rows = [{"instruction": "Add.", "input": "2 + 2", "output": "4"}]
    (side,) = prepare_solutions(rows, tokenizer).sides
    assert tokenizer.decode(side.ids) == "Add.\n2 + 24<eos>"
    with pytest.raises(RowError, match=r"field 'context': holds text that is not read"):
        prepare_solutions([{"prompt": "q", "context": "c", "response": "4"}], tokenizer)
    (side,) = prepare_solutions(
        [{"ask": "q", "response": "4"}], tokenizer, columns={"prompt": "ask"}
    ).sides
    assert tokenizer.decode(side.ids) == "q4<eos>"


def test_the_page_of_layouts_is_what_inspect_shows() -> None:
    from tests.data.layout_examples import page

    found = Path(__file__).parents[2] / "docs" / "data_layouts.md"
    assert found.read_text() == page(), (
        "run python -m tests.data.layout_examples > docs/data_layouts.md"
    )
