"""Variables and tools of a chat template, by row and for all rows.

Every prompt is compared with `tokenizer.apply_chat_template`, of the templates that trl ships.
"""

import json
from typing import Any

import datasets
import pytest

from prefkit.data import ReadOptions, TokenizeOptions, prepare_pairs
from prefkit.errors import RowError
from tests.data.chat_cases import QUESTION, TOOLS, said, tokenizer_for

ROW = {"prompt": QUESTION, "chosen": said("4"), "rejected": said("5")}
MORE_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
VARIABLES: dict[str, list[dict[str, Any]]] = {
    "qwen3": [{"enable_thinking": False}, {"enable_thinking": True}, {}],
    "glm4moe": [{"enable_thinking": False}, {}],
    "gptoss": [
        {"reasoning_effort": "low", "model_identity": "You are small."},
        {"reasoning_effort": "high"},
        {},
    ],
}
WITH_TOOLS = ("qwen3", "glm4moe", "gptoss", "llama3_1", "lfm2_2_5_v2")


def prompts(name: str, rows: Any, **options: Any) -> list[list[int]]:
    """What precedes the scored tokens of each chosen sequence."""
    made = prepare_pairs(
        rows, tokenizer_for(name), TokenizeOptions(**options), ReadOptions(level="solution")
    )
    return [pair.chosen.ids[: int(pair.chosen.scored.argmax())].tolist() for pair in made.pairs]


def of_template(name: str, tools: Any = None, **variables: Any) -> list[int]:
    return tokenizer_for(name).apply_chat_template(
        QUESTION, tools=tools, add_generation_prompt=True, return_dict=False, **variables
    )


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("form", ["objects", "JSON", "a table"])
def test_each_row_s_own_variables(name: str, form: str) -> None:
    each = VARIABLES[name]
    rows: Any = [{**ROW, "chat_template_kwargs": one} for one in each]
    if form == "JSON":
        rows = [
            {**row, "chat_template_kwargs": json.dumps(row["chat_template_kwargs"])} for row in rows
        ]
    if form == "a table":  # of Arrow, which writes each name into each row, null where it is not
        rows = datasets.Dataset.from_list(rows)
        assert None in rows[-1]["chat_template_kwargs"].values()
    want = [of_template(name, **one) for one in each]
    assert prompts(name, rows) == want
    assert len({tuple(ids) for ids in want}) > 1


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_of_all_rows_give_way_to_those_of_a_row(name: str) -> None:
    first, *others = VARIABLES[name]
    rows = [{**ROW, "chat_template_kwargs": one} for one in others]
    got = prompts(name, [ROW, *rows], chat_template_kwargs=first)
    assert got == [of_template(name, **{**first, **one}) for one in ({}, *others)]


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("form", ["list", "JSON", "list of JSON", "a table"])
def test_each_row_s_own_tools(name: str, form: str) -> None:
    each = [TOOLS, MORE_TOOLS, [*TOOLS, *MORE_TOOLS]]
    written: dict[str, Any] = {
        "JSON": [json.dumps(one) for one in each],
        "list of JSON": [[json.dumps(tool) for tool in one] for one in each],
    }
    rows: Any = [{**ROW, "tools": one} for one in written.get(form, each)]
    if form == "a table":
        rows = datasets.Dataset.from_list(rows)
    dated = {"date_string": "1 Jan 2025"} if name == "llama3_1" else {}  # it writes today's else
    want = [of_template(name, one, **dated) for one in each]
    assert prompts(name, rows, chat_template_kwargs=dated) == want
    assert len({tuple(ids) for ids in want}) == 3


def test_tools_that_are_no_schemas_are_refused() -> None:
    for tools, words in (("[", "no JSON"), (["{"], r"tools\[0\].*no JSON"), ("3", "is a int")):
        with pytest.raises(RowError, match=words):
            prompts("qwen3", [{**ROW, "tools": tools}])
