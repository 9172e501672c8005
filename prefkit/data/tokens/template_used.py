"""Which chat template wrote the rows of a dataset."""

from typing import Any

from prefkit.data.tokens.chat import read_template
from prefkit.data.tokens.render import Renderer


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
