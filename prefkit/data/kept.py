"""Nothing of a message may be lost: what a chat template was given has to be in what it wrote.

Asked of the template itself, by writing a conversation with and without the field in question.
"""

from collections.abc import Callable, Sequence

from prefkit.data.chat import THOUGHT_FIELDS, ChatTemplate, extra_fields, is_written, texts_of
from prefkit.data.pair import Front, Message
from prefkit.errors import RowError

_TO_MODEL = ("system", "developer", "tool")  # roles whose text the model has to be shown


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

        Contents of earlier turns may be left out, as some templates do by design; the question,
        system texts and tool results may not.

        Raises:
            RowError: a content, a field or the row's tools that the template does not write.
        """
        asked = [message for message in messages if message["role"] == "user"][-1:]
        for message in (*asked, *(m for m in messages if m["role"] in _TO_MODEL)):
            self.check_content(front, message, "prompt", text)
        for place, message in enumerate(messages):
            for name in _words_of(messages, place):
                known = f"{message['role']}.{name}"
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
        self, front: Front, messages: Sequence[Message], place: int, field: str, text: str
    ) -> None:
        """One message of a response, which the template wrote within `text`.

        Args:
            front: for messages.
            messages: the whole conversation.
            place: of the message in it.
            field: of the row, for messages.
            text: what was written of the turn.

        Raises:
            RowError: a content or a field that the template does not write.
        """
        for name in _words_of(messages, place):
            if not self._is_read(front, messages, place, name):
                raise _unread(front, field, name)
        self.check_content(front, messages[place], field, text)

    def check_content(self, front: Front, message: Message, field: str, text: str) -> None:
        """Raises RowError where the content of a message is not all in what was written."""
        if all(is_written(piece, text) for piece in texts_of(message.get("content"))):
            return
        whose = "" if message["role"] == "user" else f"holds a message of {message['role']} that "
        problem = f"{whose}is lost in the chat template, which writes {text[:60]!r} for it"
        remedy = "Set chat_template to a template that writes the messages' content."
        if not isinstance(message["content"], str):
            remedy = (
                "Write the content as one string, or set chat_template to one that reads parts."
            )
        raise RowError(front.source, front.row, field, problem, remedy)

    def _check_prompt_field(
        self, front: Front, messages: Sequence[Message], place: int, name: str
    ) -> None:
        """Many templates drop the thoughts of earlier turns by design, so a field is also looked
        for where its message would be the last one."""
        if self._is_read(front, messages, place, name):
            return
        if not self._is_read(front, messages[: place + 1], place, name):
            raise _unread(front, f"prompt[{place}]", name)

    def _is_read(self, front: Front, messages: Sequence[Message], place: int, name: str) -> bool:
        """Whether what the template writes changes when a message loses a field."""
        bare = {key: value for key, value in messages[place].items() if key != name}
        without = [*messages[:place], bare, *messages[place + 1 :]]
        written = self._write(front, messages)
        try:
            return written != self._write(front, without)
        except RowError:  # it cannot do without
            return True

    def _check_tools(self, front: Front, messages: Sequence[Message], text: str) -> None:
        if self._write(front, messages, begin=True, tools=()) == text:
            problem = "are not read by the chat template"
            remedy = "Set chat_template to one that does, or write them into the system message."
            raise RowError(front.source, front.row, "tools", problem, remedy)


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
