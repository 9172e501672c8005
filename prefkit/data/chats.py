"""Which rows a chat template writes, and which template that is."""

from typing import Any

from prefkit.data.pair import Front
from prefkit.data.render import Renderer, TokenizeOptions, read_template


def is_chat(front: Front, options: TokenizeOptions) -> bool:
    """Whether a chat template writes this row: messages, or a string that is read as one."""
    return not isinstance(front.prompt, str) or options.string_prompts == "chat"


def template_used(renderer: Renderer, chats: int) -> Any:
    """The template that wrote `chats` rows: its text, or the tokenizer's several; None for none."""
    if not chats:
        return None
    given, tokenizer = renderer.options.chat_template, renderer.tokenizer
    return (
        tokenizer.chat_template
        if given is None
        else tokenizer.get_chat_template(read_template(given))
    )
