"""Chat templates of ten current models, as the package trl ships them, and a tokenizer for each.

The tokenizer is made here: bytes, with the template's own marks as one token each. So what is
tested is what templates write and where tokens begin, which no vocabulary changes.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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
    from tokenizers import AddedToken

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
