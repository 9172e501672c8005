"""Chat messages as rows hold them: one or a list, in the form of OpenAI or of ShareGPT.

    {"role": "assistant", "content": "4", "reasoning_content": "2 + 2 is four."}
    {"from": "gpt", "value": "4"}

Whatever a message holds goes on to the chat template, which has to write it (text/kept.py). Only
what is no text at all is refused, and typed blocks become text, as no template knows them.
"""

import json
from typing import Any

from prefkit.data.formats.fields.blocks import render_content
from prefkit.data.formats.fields.row import Row
from prefkit.data.pair import Message, is_message

_REMEDY = 'Write a list of {"role": …, "content": …} objects.'
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
    "function_call": "assistant",
}


TEXT_ALONE = (
    "Text alone is read here; prefkit.integrations.trl.DPOTrainer trains vision-language models on "
    "rows with images"
)
# Of OpenAI's fine-tuning and of axolotl: whether a message is trained.
_TRAINED = ("weight", "train", "training")


def has_blocks(content: Any) -> bool:
    """Whether a content is made of typed blocks: text, code and what a program printed."""
    return isinstance(content, list) and any(
        isinstance(part, dict) and ("content" in part or part.get("type") in ("code", "execution"))
        for part in content
    )


def read_messages_field(row: Row, field: str) -> list[Message]:
    """The messages of a field, each with a role; contents as they are.

    Raises:
        RowError: no list of messages, an unknown speaker.
    """
    value = row.require(field)
    value = [value] if is_message(value) else value
    if value == []:
        raise row.empty(field)
    if not isinstance(value, list):
        raise row.error(field, "is not a list of messages", _REMEDY)
    if field in ("chosen", "rejected"):
        _check_trained(row, field, value)
    return [_message(row, message, f"{field}[{i}]") for i, message in enumerate(value)]


def plain_message(row: Row, message: Message, field: str, style: str) -> Message:
    """A message as the chat template gets it: blocks as text, all else as it is.

    Args:
        row, field: for messages.
        message: of `read_messages_field`.
        style: how blocks are written (blocks.py).

    Raises:
        RowError: a content that is no text.
    """
    kept = {name: value for name, value in message.items() if value is not None}
    content, where = message.get("content"), f"{field}.{message['role']}"
    if content is None and message.get("tool_calls"):
        return {**kept, "content": None}  # templates ask whether it is there
    if isinstance(content, list) and content and not has_blocks(content):
        for place, part in enumerate(content):
            _check_part(row, part, f"{where}[{place}]")
        return kept
    return {**kept, "content": render_content(row, content, where, style).text}


def says_nothing(message: Message) -> bool:
    """Whether a message has neither content nor anything else to write."""
    content = message.get("content")
    texts = [part.get("text") for part in content] if isinstance(content, list) else [content]
    others = (value for name, value in message.items() if name not in ("role", "content", "name"))
    return not any(str(text or "").strip() for text in texts) and not any(others)


def _message(row: Row, message: Any, field: str) -> Message:
    if not is_message(message):
        raise row.error(field, "is not a message with a role", _REMEDY)
    if "role" not in message:
        return _from_sharegpt(row, message, field)
    if not isinstance(message["role"], str):
        raise row.error(field, "is not a message with a role", _REMEDY)
    return _without_training(row, message, field)


def _check_trained(row: Row, field: str, messages: list[Any]) -> None:
    """A response is trained whole. Where the row has no prompt, its front may be context."""
    for place in range(0 if "prompt" in row else len(messages) - 1, len(messages)):
        message = messages[place]
        if not isinstance(message, dict) or message.get("role") != "assistant":
            continue
        for name in _TRAINED:
            if message.get(name) is not None and not message[name]:
                problem = f"asks that a message of the assistant's is not trained ('{name}')"
                remedy = "Put the turns up to it into the prompt: all of a response is trained."
                raise row.error(f"{field}[{place}]", problem, remedy)


def _without_training(row: Row, message: Message, field: str) -> Message:
    """The message without what others say of its training: yes is taken for granted."""
    calls = message.get("tool_calls") or []
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        remedy = 'Write a list of {"type": "function", "function": {…}} objects.'
        raise row.error(field, f"has tool_calls that are a {type(calls).__name__}", remedy)
    return {name: value for name, value in message.items() if name not in _TRAINED}


def _from_sharegpt(row: Row, message: Message, field: str) -> Message:
    speaker, value = message["from"], message["value"]
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        remedy = f"Name one of: {', '.join(_ROLES)}."
        raise row.error(field, f"is said by {speaker!r}, which is no known speaker", remedy)
    more = {name: found for name, found in message.items() if name not in ("from", "value")}
    if speaker != "function_call":
        return {"role": role, "content": value, **more}
    try:
        call = json.loads(value) if isinstance(value, str) else value
        calls = [
            {"type": "function", "function": {"name": one["name"], "arguments": one["arguments"]}}
            for one in (call if isinstance(call, list) else [call])
        ]
    except (ValueError, TypeError, KeyError) as error:
        remedy = 'Write it as {"name": …, "arguments": {…}}.'
        raise row.error(field, f"is no call of a function ({error!r})", remedy) from error
    return {"role": role, "content": None, "tool_calls": calls, **more}


def _check_part(row: Row, part: Any, field: str) -> None:
    remedy = f'Write text parts, {{"type": "text", "text": …}}. {TEXT_ALONE}.'
    if not isinstance(part, dict):
        raise row.error(field, f"is a {type(part).__name__}, not a part", remedy)
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise row.error(field, f"is a part of type {part.get('type')!r} without a text", remedy)
    row.as_text(part["text"], field, empty=True)
