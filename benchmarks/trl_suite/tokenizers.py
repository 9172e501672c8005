"""Small tokenizers with the chat templates that the package trl ships.

Byte-level BPE, learnt from the rows of the stand-ins; what a template writes as a mark (such as
<|im_start|>) is one token.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.trl_suite import rows

_FOLDER = Path(trl.__file__).parent / "chat_templates"
_MARK = re.compile(r"<[|｜][^<>{}' ]{1,30}[|｜]?>|<[a-z_]{3,15}>|\[gMASK\]|<[A-Z_]{5,25}>")
_WORDS = 800  # of the vocabulary, bytes included


def tokenizer(template: str | None, end: str, marks: Mapping[str, str] | None = None) -> Any:
    """A tokenizer for a template.

    Args:
        template: name of a file of trl's folder, without its ending; None = no template.
        end: its end-of-sequence token.
        marks: further special tokens by their names, such as image_token.
    """
    text = (_FOLDER / f"{template}.jinja").read_text("utf-8") if template else ""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    learn = trainers.BpeTrainer(
        vocab_size=_WORDS,
        special_tokens=["<pad>", "<bos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [row[name] for row in rows.standard() for name in ("prompt", "chosen", "rejected")]
    # Tools and what a template writes about them, which few bytes a token would make too long.
    inner.train_from_iterator([*texts, *rows.tool_calls()["tools"], text], learn)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token=end,
        pad_token="<pad>",
        extra_special_tokens=dict(marks or {}),
    )
    special = sorted({*_MARK.findall(text), end})
    made.add_tokens([AddedToken(mark, special=True) for mark in special], special_tokens=True)
    if text:
        made.chat_template = text
    return made
