"""How a prompt is put: options that sampling, training and scoring share and must agree on."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(kw_only=True)
class PromptFields:
    """How a prompt becomes the text a model reads. The text under a field is its `--help` line."""

    # -- prompt -----------------------------------------------------------------------------------
    string_prompts: Literal["raw", "chat"] = "raw"
    """Prompts given as plain strings: used as they are, or put into the chat template."""
    prompt_template: str = "{prompt}"
    """Wraps plain prompts, e.g. "Question: {prompt}\\nAnswer:\\n"."""
    joiner: str = ""
    """Text between a plain prompt and what follows it (Step-DPO templates: "\\n" or " ")."""
    system_prompt: str | None = None
    """System message put before plain prompts that are read as chat."""
    chat_template: str | None = None
    """A chat template in place of the tokenizer's own, or "plain"."""
    chat_template_kwargs: dict | str | None = None
    """Extra variables of the chat template, e.g. {"enable_thinking": false}."""

    def prompt_options(self) -> dict[str, Any]:
        """Name → value of the fields above, of this object or of one that inherits them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(PromptFields)}
