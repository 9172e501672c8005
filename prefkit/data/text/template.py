"""What a chat template writes, and what of a message it reads.

A template is a program: it may drop a thought, ignore a field, or open the next turn with text of
its own. Nothing is assumed of it here; it is asked, by writing messages with and without the thing
in question.
"""

import copy
import functools
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefkit.data.pair import Message
from prefkit.errors import ConfigError, PrefkitError

logger = logging.getLogger(__name__)

# What `chat_template="plain"` stands for: contents on lines of their own, no role tokens. For
# conversational rows on a base model that has no template of its own.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"
PROBE = "prefkit-probe"
_TEXT_PROBE = '{"p": "prefkit-probe"}'
_RESERVED = ("tools", "add_generation_prompt", "continue_final_message", "tokenize", "messages")
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")  # three names of one thing


class ChatTemplate:
    """The chat template of a tokenizer, or one that replaces it.

    Args:
        tokenizer: a fast transformers tokenizer.
        given: a Jinja template, the path of a file that holds one, "plain", or None for the
            tokenizer's own.
        variables: extra variables of the template.

    Raises:
        ConfigError: `given` is a file that cannot be read, or writes no message; a variable whose
            name the template does not hold.
    """

    def __init__(
        self, tokenizer: Any, given: str | None = None, variables: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer, self.variables = tokenizer, dict(variables or {})
        self.template = read_template(given)
        self._end_of_turn: int | None = None
        self._tail: str | None = None
        # (the turn holds calls, who speaks next) → text between the turn's end and what is said
        self._arguments: str | None = None
        self.between: dict[tuple[bool, str], str] = {}
        added = tokenizer.added_tokens_decoder
        self.special = {token.content: i for i, token in added.items() if token.special}
        if reserved := [name for name in self.variables if name in _RESERVED]:
            raise ConfigError(
                f"chat_template_kwargs has '{reserved[0]}', which is not the template's to take. "
                "Leave it out; tools are a column of the rows."
            )
        if unread := self.unread_variables(self.variables):
            raise ConfigError(
                f"chat_template_kwargs has {', '.join(map(repr, unread))}, of which the chat "
                "template knows nothing. Correct the name, or leave it out."
            )
        if given is not None:
            self._check(given)
        if "strftime_now" in self.source():
            say_once(
                "The chat template writes today's date: rows that are prepared on another day have "
                "other tokens. Set chat_template to a copy of it with a fixed date to avoid that."
            )

    def write(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        begin: bool = False,
        go_on: bool = False,
    ) -> str:
        """The messages as text.

        Args:
            messages: as the template takes them; they are not changed.
            tools: schemas of the tools that the model may call.
            variables: of this row, over those of all rows.
            begin: open the assistant's next turn (`add_generation_prompt`).
            go_on: leave the last message unfinished (`continue_final_message`).

        Raises:
            PrefkitError: the tokenizer has no chat template.
            Exception: whatever the template raises.
        """
        if self.template is None and not getattr(self.tokenizer, "chat_template", None):
            raise PrefkitError("holds messages, but the tokenizer has no chat template")
        own = list(messages)
        if any(message.get("tool_calls") for message in own):
            own = copy.deepcopy(own)
            _put_arguments(own, self.arguments_form())
        return self._apply(own, tools, begin, go_on, variables)

    def arguments_form(self) -> str:
        """How the template takes the arguments of a call: "object", "text" (JSON), or "any".

        OpenAI's messages hold them as text. A template that writes whatever it gets as JSON would
        write such a text in quotes, with a backslash before each of its own.
        """
        if self._arguments is None:
            as_object, as_text = (self._writes_call(form) for form in ({"p": PROBE}, _TEXT_PROBE))
            # 'p' is how Python prints a dictionary: the template has no form for one.
            takes_object = as_object is not None and PROBE in as_object and "'p'" not in as_object
            takes_text = as_text is not None and _TEXT_PROBE in as_text
            if takes_object and not (takes_text and as_text == as_object):
                self._arguments = "object"
            else:
                self._arguments = "any" if takes_object or not takes_text else "text"
        return self._arguments

    def _writes_call(self, arguments: Any) -> str | None:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        for content in ("", None):
            turn = {"role": "assistant", "content": content, "tool_calls": [call]}
            try:
                return self._apply([{"role": "user", "content": "?"}, turn], None, False, False, {})
            except Exception:
                continue
        return None

    def _apply(
        self,
        messages: list[Message],
        tools: Sequence[Any] | None,
        begin: bool,
        go_on: bool,
        variables: Mapping[str, Any] | None,
    ) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tools=list(tools) if tools else None,
            tokenize=False,
            chat_template=self.template,
            add_generation_prompt=begin,
            continue_final_message=go_on,
            **{**self.variables, **(variables or {})},
        )

    def unread_variables(self, variables: Mapping[str, Any]) -> list[str]:
        """Those variables whose names are nowhere in the template: they would have no effect."""
        source = self.source()
        if not source:
            return []
        return [name for name in variables if not re.search(rf"\b{re.escape(name)}\b", source)]

    def source(self) -> str:
        """The template's text, "" where there is none (or several, none of them the default)."""
        if self.template is None and not getattr(self.tokenizer, "chat_template", None):
            return ""
        try:
            return self.tokenizer.get_chat_template(self.template)
        except ValueError:
            return ""

    def end_of_turn(self) -> int | None:
        """The id of the first special token that is written after an assistant's message; the
        end-of-sequence token where none is."""
        self._probe_end()
        return self._end_of_turn

    def tail(self) -> str:
        """All that is written after the content of a last message of the assistant's."""
        self._probe_end()
        assert self._tail is not None
        return self._tail

    def _probe_end(self) -> None:
        if self._tail is not None:
            return
        self._tail, self._end_of_turn = "", self.tokenizer.eos_token_id
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        try:
            text = self.write(turn)
        except Exception:  # a template for other roles: the pairs' own messages may still render
            return
        _, found, tail = text.rpartition(PROBE)
        if not found or not tail:
            return
        self._tail = tail
        known = {*self.special.values(), *self.tokenizer.all_special_ids}
        ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        self._end_of_turn = next((i for i in ids if i in known), self._end_of_turn)

    def _check(self, given: str) -> None:
        """A template that loses every question is refused before any row is read."""
        try:
            text = self.write([{"role": "user", "content": PROBE}], begin=True)
        except Exception:  # other roles, or no valid Jinja: the rows' own messages will tell
            return
        if PROBE not in text:
            raise ConfigError(
                f"chat_template {given[:80]!r} does not write the messages' content. Give a Jinja "
                'template, the path of a file that holds one, or "plain".'
            )


@functools.cache
def say_once(line: str) -> None:
    """A warning that a process gives once, however many data sets it prepares."""
    logger.warning("%s", line)


def read_template(given: str | None) -> str | None:
    """The text of a template: of the name "plain", of a file, or the given text itself.

    Raises:
        ConfigError: a file that cannot be read.
    """
    if given == "plain":
        return PLAIN_TEMPLATE
    if given is None or not (given.endswith(".jinja") or os.path.isfile(given)):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template {given!r} is a file that cannot be read ({error}). Name a file that "
            'holds a Jinja template, or give the template itself, or "plain".'
        ) from error


def _put_arguments(messages: list[Message], form: str) -> None:
    """The arguments of all calls in the form that a template takes; in place."""
    if form == "any":
        return
    for message in messages:
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            given = function.get("arguments")
            if form == "text" and isinstance(given, Mapping):
                function["arguments"] = json.dumps(given, ensure_ascii=False)
            elif form == "object" and isinstance(given, str):
                try:
                    found = json.loads(given)
                except ValueError:
                    continue
                function["arguments"] = found if isinstance(found, dict) else given


def extra_fields(message: Message) -> list[str]:
    """The fields of a message beside role and content that hold something."""
    return [name for name, value in message.items() if name not in ("role", "content") and value]


def is_written(piece: str, text: str) -> bool:
    """Whether a template wrote this text, as it is or as a JSON string."""
    if piece in text:
        return True
    return any(json.dumps(piece, ensure_ascii=a)[1:-1] in text for a in (True, False))


def common_start(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare faster than characters do, and texts may be long
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_end(one: str, other: str) -> int:
    """How many characters two texts end with alike."""
    return common_start(one[::-1], other[::-1])
