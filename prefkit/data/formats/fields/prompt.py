"""The prompt of a row, and what a row says of the chat around it: system text, tools, variables."""

import json
from typing import Any

from prefkit.data.formats.fields.messages import (
    TEXT_ALONE,
    plain_message,
    read_messages_field,
)
from prefkit.data.formats.fields.row import NEEDED, Row
from prefkit.data.pair import Message, is_conversational

Prompt = str | tuple[Message, ...]


def read_prompt(row: Row, remedy: str = NEEDED) -> Prompt:
    """The row's prompt: text, or messages as the chat template takes them.

    Raises:
        RowError: it is missing, empty or neither; `remedy` says what rows need.
    """
    if not is_conversational(row.get("prompt")):
        return row.text("prompt", remedy=remedy)
    messages = read_messages_field(row, "prompt")
    return tuple(plain_message(row, message, "prompt", "plain") for message in messages)


def front_fields(row: Row, prompt: Prompt) -> dict[str, Any]:
    """The prompt with what a row says of the chat beside it, as arguments of `Front`.

    Raises:
        RowError: `system`, `tools` or `chat_template_kwargs` of another form.
    """
    system = row.text("system", empty=True) if "system" in row else ""
    system = system if system.strip() else ""
    if system and not isinstance(prompt, str):
        if prompt[0]["role"] != "system":
            prompt = ({"role": "system", "content": system}, *prompt)
        elif prompt[0]["content"] != system:
            problem = "is another text than the system message of the prompt"
            raise row.error("system", problem, "Keep one of the two.")
    tools = _object(row, "tools", list, "a list of schemas") or []
    tools = [_parsed(row, f"tools[{i}]", one, "a schema") for i, one in enumerate(tools)]
    variables = _object(row, "chat_template_kwargs", dict, 'such as {"enable_thinking": false}')
    return {
        "prompt": prompt,
        "system": system if "system" in row and isinstance(prompt, str) else None,
        "tools": tuple(tools),
        "variables": variables or {},
        "source": row.source,
        "row": row.index,
    }


def _object(row: Row, field: str, kind: type, form: str) -> Any:
    """A field that is an object, or an object as JSON; None where it is missing."""
    value = _parsed(row, field, row.get(field), form)
    if value is not None and not isinstance(value, kind):
        raise row.error(field, f"is a {type(value).__name__}", f"Write {form}.")
    return value


def _parsed(row: Row, field: str, value: Any, form: str) -> Any:
    """A value as it is, or what a text says as JSON; None for a blank one."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        raise row.error(field, f"is no JSON ({error})", f"Write {form}.") from error


def refuse_media(row: Row) -> None:
    """Raises RowError for a row with pictures, sound or films."""
    for field in ("images", "image", "videos", "audio"):
        if row.get(field):
            raise row.error(field, "is no text", f"Remove the field. {TEXT_ALONE}.")
