"""How texts become tokens: options that sampling, training and scoring share and must agree on.

The text under a field is its documentation and its `--help` line.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from prefkit.options.option import option


@dataclass(kw_only=True)
class PromptFields:
    """How a prompt becomes the text a model reads."""

    # -- prompt -----------------------------------------------------------------------------------
    string_prompts: Literal["raw", "chat"] = "raw"
    """Prompts given as plain strings: used as they are, or put into the chat template."""
    prompt_template: str = option("{prompt}", around_prompt=True)
    """Wraps plain prompts, e.g. "Question: {prompt}\\nAnswer:\\n"."""
    joiner: str = option("", around_prompt=True)
    """Text between a plain prompt and what follows it (Step-DPO templates: "\\n" or " ")."""
    system_prompt: str | None = option(None, around_prompt=True)
    """System message put before plain prompts that are read as chat."""
    chat_template: str | None = None
    """A chat template in place of the tokenizer's own: Jinja text, a file of it, or "plain"."""
    chat_template_kwargs: dict | str | None = None
    """Extra variables of the chat template, e.g. {"enable_thinking": false}."""

    def prompt_options(self) -> dict[str, Any]:
        """Name → value of the fields above, of this object or of one that inherits them."""
        return values_of(self, PromptFields)


@dataclass(kw_only=True)
class LengthFields:
    """How long a sequence may be."""

    # -- data -----------------------------------------------------------------------------------
    max_length: int | None = option(None, at_least=1)
    """Longest sequence in tokens, prompt included; None = what the model can read."""
    too_long: Literal["error", "skip", "truncate_end"] = "error"
    """Longer sequences: error, skip (counted and listed), or cut the end of whole solutions.
    Prompt, prefix and single steps are never cut."""


# Of rows of pairs; `prefkit.data.formats.detect.FORMATS` has their readers.
RowFormat = Literal["auto", "prefkit", "trl", "step-dpo", "scdpo", "cdpo", "tdpo"]
BlockStyle = Literal["plain", "tagged"]


@dataclass(kw_only=True)
class EqualField:
    """What becomes of a pair that prefers nothing."""

    # -- data -----------------------------------------------------------------------------------
    equal: Literal["error", "skip"] = "error"
    """Pairs of two responses that are the same text, or the same tokens: error, or skip (counted
    and listed)."""


@dataclass(kw_only=True)
class ReadingFields(EqualField):
    """What the columns of a row of pairs mean."""

    # -- data -----------------------------------------------------------------------------------
    format: RowFormat = "auto"
    """Format of the rows; auto tells it by their fields (`prefkit inspect` shows the result)."""
    block_style: BlockStyle = "plain"
    """How typed blocks (text, code, execution) are written out: plain or tagged."""
    mask_tool_output: bool = True
    """Tool output (execution blocks) is context that is never scored."""


@dataclass(kw_only=True)
class TextFields(PromptFields, LengthFields):
    """How texts become tokens, of pairs and of single solutions alike."""

    # -- data -----------------------------------------------------------------------------------
    columns: dict | str | None = None
    """Fields that stand in columns of other names, e.g. {"prompt": "question"}; null leaves a
    column out: {"notes": null}."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Unusable rows: stop with a message, or skip them (counted and listed in a file). too_long,
    empty and equal say the same of one kind of them."""
    empty: Literal["error", "skip"] = "error"
    """Rows whose prompt or response says nothing, or of whose response truncate_end leaves nothing:
    error, or skip (counted and listed)."""
    pad_to_multiple_of: int | None = option(None, at_least=1, free=True)
    """Pad batches to a multiple of this many tokens."""


def values_of(options: Any, cls: type) -> dict[str, Any]:
    """Name → value of the fields of a dataclass, of an object that has them."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(cls)}
