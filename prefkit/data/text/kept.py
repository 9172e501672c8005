"""Nothing of a message may be lost: what a chat template was given has to be in what it wrote.

Asked of the template itself, by writing a conversation with and without the field in question.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefkit.data.pair import Front, Message
from prefkit.data.text.template import PROBE, THOUGHT_FIELDS, ChatTemplate, extra_fields, is_written
from prefkit.data.text.thoughts import texts_of
from prefkit.errors import RowError

ONE_STRING = "Write the content as one string, or set chat_template to one that reads parts."


class Kept:
    """Finds what a template loses of a row's messages.

    Args:
        template: what writes.
        write: (front, messages, **how) -> text, as `Renderer.write`.
    """

    def __init__(self, template: ChatTemplate, write: Callable[..., str]) -> None:
        self._template, self._write = template, write
        self._read: set[str] = set()  # what the template is known to read in prompts

    def check_prompt(self, front: Front, messages: Sequence[Message], text: str) -> None:
        """The messages before the assistant's turn, written as `text`.

        Only the thoughts of earlier turns may be left out, as many templates do by design.

        Raises:
            RowError: a content, a field or the row's tools that the template does not write.
        """
        for message in messages:
            self.check_content(front, message, "prompt", text)
        for place, message in enumerate(messages):
            for name in _words_of(messages, place):
                several = name == "tool_calls" and len(message[name]) > 1
                known = f"{message['role']}.{name}" + " (several)" * several
                if known not in self._read:
                    self._check_prompt_field(front, messages, place, name)
                    self._read.add(known)
        if front.tools and "tools" not in self._read:
            self._check_tools(front, messages, text)
            self._read.add("tools")
        if unread := self._template.unread_variables(front.variables):
            problem = f"holds {unread[0]!r}, of which the chat template knows nothing"
            remedy = "Correct the name, or remove it."
            raise RowError(front.source, front.row, "chat_template_kwargs", problem, remedy)

    def check_message(
        self,
        front: Front,
        messages: Sequence[Message],
        place: int,
        field: str,
        text: str,
        whole: str,
    ) -> None:
        """One message of a response, which the template wrote within `text`.

        Args:
            front: the row's context; names the row in messages.
            messages: the whole conversation.
            place: index of the message in it.
            field: of the row, for messages.
            text: what was written of this turn.
            whole: what was written of all.

        Raises:
            RowError: a content or a field that the template does not write.
        """
        self._check_parts(front, messages[place], field, text)
        self.check_fields(front, messages, place, field, text, whole)
        message, beside = messages[place], text
        for word in (word for name in extra_fields(message) for word in _scalars(message[name])):
            beside = beside.replace(word, "", 1)
        pieces = texts_of(message.get("content"))
        if all(is_written(piece, beside) for piece in pieces):
            return
        # The same words may stand in a field: what the template does with others tells.
        other = [*messages[:place], {**message, "content": PROBE}, *messages[place + 1 :]]
        lost = PROBE not in self._write(front, other)
        self.check_content(front, message, field, "" if lost else text, thoughts=True)

    def check_fields(
        self,
        front: Front,
        messages: Sequence[Message],
        place: int,
        field: str,
        text: str,
        whole: str,
    ) -> None:
        """Raises RowError for a field of a message that the template does not read; arguments as in
        `check_message`."""
        message, beside = messages[place], text
        for piece in texts_of(message.get("content")):
            beside = beside.replace(piece, "", 1)
        for name in _words_of(messages, place):
            if all(is_written(word, beside) for word in _scalars(message[name])):
                continue  # seen at once: only what is not found has to be asked for
            for shown, fewer in _without(message, name):
                if self._is_read(front, messages, place, fewer, whole):
                    continue
                if self._is_read(front, messages[: place + 1], place, fewer):
                    raise _dropped(front, field, shown)
                raise _unread(front, field, shown)

    def check_content(
        self, front: Front, message: Message, field: str, text: str, thoughts: bool = False
    ) -> None:
        """Raises RowError where the content of a message is not all in what was written.

        Args:
            thoughts: of the assistant's messages have to be in it, too.
        """
        self._check_parts(front, message, field, text)
        pieces = texts_of(message.get("content"))
        if message["role"] == "assistant" and not thoughts:
            pieces = pieces[-1:]
        if all(is_written(piece, text) for piece in pieces):
            return
        whose = "" if message["role"] == "user" else f"holds a message of {message['role']} that "
        problem = f"{whose}is lost in the chat template, which writes {text[:60]!r} for it"
        remedy = "Set chat_template to a template that writes the messages' content."
        if not isinstance(message["content"], str):
            remedy = ONE_STRING
        raise RowError(front.source, front.row, field, problem, remedy)

    @staticmethod
    def _check_parts(front: Front, message: Message, field: str, text: str) -> None:
        """Templates that know strings alone print a list of parts as code, its text within."""
        content = message.get("content")
        if not isinstance(content, list):
            return
        for part in content:
            if str(part) in text or json.dumps(part, ensure_ascii=False) in text:
                problem = f"holds a list of parts, which the chat template prints as code: {part}"
                raise RowError(front.source, front.row, field, problem, ONE_STRING)

    def _check_prompt_field(
        self, front: Front, messages: Sequence[Message], place: int, name: str
    ) -> None:
        """Many templates drop the thoughts of earlier turns by design, so a field is also looked
        for where its message would be the last one."""
        for shown, fewer in _without(messages[place], name):
            if not self._is_read(front, messages, place, fewer) and not self._is_read(
                front, messages[: place + 1], place, fewer
            ):
                raise _unread(front, f"prompt[{place}]", shown)

    def _is_read(
        self,
        front: Front,
        messages: Sequence[Message],
        place: int,
        fewer: Message,
        written: str | None = None,
    ) -> bool:
        """Whether what the template writes changes when a message loses something."""
        without = [*messages[:place], fewer, *messages[place + 1 :]]
        written = self._write(front, messages) if written is None else written
        try:
            return written != self._write(front, without)
        except RowError:  # it cannot do without
            return True

    def _check_tools(self, front: Front, messages: Sequence[Message], text: str) -> None:
        if self._write(front, messages, begin=True, tools=()) == text:
            problem = "are not read by the chat template"
            remedy = "Set chat_template to one that does, or write them into the system message."
            raise RowError(front.source, front.row, "tools", problem, remedy)


def _without(message: Message, name: str) -> list[tuple[str, Message]]:
    """A field's name and the message without it; call by call where it holds several calls."""
    calls = message[name]
    if name != "tool_calls" or len(calls) < 2:
        return [(name, {key: value for key, value in message.items() if key != name})]
    return [
        (f"tool_calls[{i}]", {**message, name: [*calls[:i], *calls[i + 1 :]]})
        for i in range(len(calls))
    ]


def _dropped(front: Front, field: str, name: str) -> RowError:
    """A field that the template reads of a last turn only."""
    problem = f"holds '{name}' in a turn that others follow, of which the chat template drops it"
    remedy = "Train that turn in a row of its own, or set chat_template to one that keeps it."
    return RowError(front.source, front.row, field, problem, remedy)


def _scalars(value: Any) -> list[str]:
    """The texts and numbers that a field holds, as a template would write them."""
    if isinstance(value, Mapping):
        return [word for name, one in value.items() if name != "type" for word in _scalars(one)]
    if isinstance(value, list):
        return [word for one in value for word in _scalars(one)]
    if isinstance(value, str):
        return texts_of(value)
    return [json.dumps(value)]


def _words_of(messages: Sequence[Message], place: int) -> list[str]:
    """The fields of a message that say something: not an id that only links a result to its call,
    nor the name of a call that is repeated with its result."""
    message = messages[place]
    calls = [call for other in messages for call in other.get("tool_calls") or []]
    called = {call.get("function", call).get("name") for call in calls}
    return [
        name
        for name in extra_fields(message)
        if name not in ("tool_call_id", "id")
        and not (name == "name" and message["role"] == "tool" and message[name] in called)
    ]


def _unread(front: Front, field: str, name: str) -> RowError:
    """A field of a message that the template does not read, with what to do."""
    problem = f"holds '{name}', which the chat template does not read"
    remedy = "Remove it, or set chat_template to one that reads it."
    if name in THOUGHT_FIELDS:
        others = " or ".join(f"'{other}'" for other in THOUGHT_FIELDS if other != name)
        remedy = f"Name it {others} if the template reads that, write the thought into the content "
        remedy += "(<think>…</think>), or set chat_template."
    return RowError(front.source, front.row, field, problem, remedy)
