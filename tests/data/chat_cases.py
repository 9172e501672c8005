"""Chat templates of ten current models, as the package trl ships them, and a tokenizer for each.

The tokenizer is made here: bytes, with the template's own marks as one token each. So what is
tested is what templates write and where tokens begin, which no vocabulary changes.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefkit.data import TokenizeOptions, prepare_pairs
from prefkit.data.text.render import Renderer
from prefkit.data.view import view_pair
from prefkit.errors import RowError

trl = pytest.importorskip("trl", reason="trl ships the chat templates")
FOLDER = Path(trl.__file__).parent / "chat_templates"
FAMILIES = {
    "Qwen3": "qwen3",
    "Qwen3.6": "qwen3_6",
    "Qwen3-Instruct-2507": "qwen3_instruct_2507",
    "DeepSeek-R1-Distill": "deepseek_r1_distill",
    "DeepSeek-V3": "deepseekv3",
    "GLM-4.5": "glm4moe",
    "gpt-oss": "gptoss",
    "Gemma 3": "gemma3",
    "Gemma 4": "gemma4_v5",
    "Nemotron 3 Nano": "nemotron_3_nano",
    "Llama 3.1": "llama3_1",
    "LFM2.5": "lfm2_2_5_v2",
}
# What ends with |> or is a tag in brackets is a mark; those that end a turn are special tokens.
_MARK = re.compile(
    r"<[|｜][^<>{}' ]{1,30}[|｜]?>|</?[a-z_]{4,15}>|<[a-z_]+\|>|\[gMASK\]|<(?:bos|sop)>"
)
_ENDS = {
    "gptoss": "<|return|>",
    "gemma3": "<end_of_turn>",
    "gemma4_v5": "<turn|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "glm4moe": "<|endoftext|>",
    "llama3_1": "<|eot_id|>",
}
_PLAIN = re.compile(r"</?(?:think|tool_call|tools|tool_response|arg_key|arg_value)>")
_made: dict[str, PreTrainedTokenizerFast] = {}


def template(name: str) -> str:
    """The text of a template; skips where this version of trl has none of that name."""
    path = FOLDER / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"this version of trl ships no {path.name}")
    return path.read_text()


def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    """A byte tokenizer with the marks of a template, made once."""
    if name in _made:
        return _made[name]
    text = template(name)
    end = _ENDS.get(name, "<|im_end|>")
    marks = sorted({*_MARK.findall(text), end, "<think>", "</think>"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("t", "h")]  # two line breaks are one token, as in most vocabularies
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", *alphabet, "ĊĊ", "th"])}
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token=end, pad_token="<pad>"
    )
    special = [AddedToken(mark, special=True) for mark in marks if not _PLAIN.fullmatch(mark)]
    plain = [AddedToken(mark, special=False) for mark in marks if _PLAIN.fullmatch(mark)]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.add_tokens(plain)
    tokenizer.chat_template = text
    _made[name] = tokenizer
    return tokenizer


TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer", "description": "The first."}},
                "required": ["a"],
            },
        },
    }
]
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def said(content: str, **fields: Any) -> list[dict[str, Any]]:
    """A response of one message."""
    return [{"role": "assistant", "content": content, **fields}]


# ------------------------------------------------------------------------------------- the cases

THOUGHT_FIELD = {"gptoss": "thinking", "gemma4_v5": "reasoning", "lfm2_2_5_v2": "thinking"}
CASES = (
    "plain",
    "plain, no thinking",
    "thought in field",
    "thought in text",
    "begun turn",
    "tools",
)


def row_of(case: str, name: str) -> dict[str, Any]:
    """The row of a case, in the words that a template reads."""
    thought = THOUGHT_FIELD.get(name, "reasoning_content")
    if case == "thought in field":
        sides = said("4", **{thought: "Two and two."}), said("5", **{thought: "I guess."})
    elif case == "thought in text":
        sides = (
            said("<think>\nTwo and two.\n</think>\n\n4"),
            said("<think>\nI guess.\n</think>\n\n5"),
        )
    elif case == "begun turn":
        begun = {"role": "assistant", "content": "<think>\nStep 1:"}
        sides = said(" two and two.\n</think>\n4"), said(" I guess.\n</think>\n5")
        return {"prompt": [*QUESTION, begun], "chosen": sides[0], "rejected": sides[1]}
    elif case == "tools":
        sides = used_tool(2, "4", name), used_tool(3, "5", name)
        return {"prompt": QUESTION, "tools": TOOLS, "chosen": sides[0], "rejected": sides[1]}
    else:
        sides = said("4"), said("5")
    row: dict[str, Any] = {"prompt": QUESTION, "chosen": sides[0], "rejected": sides[1]}
    if case.endswith("no thinking"):
        row["chat_template_kwargs"] = {"enable_thinking": False}
    return row


def used_tool(number: int, result: str, name: str) -> list[dict[str, Any]]:
    """A call, its result, and the answer."""
    as_text = name.startswith("deepseek")  # whose template takes the arguments as JSON
    arguments = f'{{"a": {number}}}' if as_text else {"a": number}
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    first = {"role": "assistant", "content": None if as_text else "", "tool_calls": [call]}
    return [first, {"role": "tool", "content": result}, *said(f"It is {result}.")]


def runs(row: dict[str, Any], tokenizer: Any) -> Iterator[tuple[bool, str]]:
    """(scored or context, text) of the chosen sequence, run by run."""
    dataset = prepare_pairs([row], tokenizer, keep_text=True)
    assert dataset.texts is not None
    renderer = Renderer(tokenizer, TokenizeOptions())
    views = view_pair(dataset.texts[0], dataset.pairs[0], 0, renderer)[0]
    for scored, some in groupby(views, lambda view: view.segment >= 0):
        yield scored, "".join(view.text for view in some)


def scored_of(case: str, name: str) -> list[str]:
    """What is scored of a case's chosen side, run by run."""
    return [text for scored, text in runs(row_of(case, name), tokenizer_for(name)) if scored]


# -------------------------------------------------------------------------- the table in the docs

_REFUSALS = {
    "which the chat template does not read": "refused: field not read",
    "are not read by the chat template": "refused: tools not read",
    "knows nothing": "refused: no such variable",
    "is an answer inside the thought": "refused: open thought",
    "otherwise than sampling would begin it": "refused: turn begins otherwise",
    "would stand in the turn's header": "refused: header still open",
}


def cell_of(case: str, name: str) -> str:
    """A cell of the table: what is scored, or why the row is refused."""
    try:
        found = scored_of(case, name)
    except RowError as error:
        return next(short for words, short in _REFUSALS.items() if words in str(error))
    shown = (text.replace("\n", "⏎").replace("|", "\\|") for text in found)
    return " … ".join(f"`{text}`" for text in shown)


def table() -> str:
    """The table of docs/data.md: what is scored of every case under every template."""
    lines = [f"| model | {' | '.join(CASES)} |", "| --- |" + " --- |" * len(CASES)]
    lines += [
        f"| {family} | {' | '.join(cell_of(case, name) for case in CASES)} |"
        for family, name in FAMILIES.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
