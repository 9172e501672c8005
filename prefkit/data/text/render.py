"""Prompt and prefix as the one string that precedes the responses, and what ends a solution.

Raw strings are taken as they are; messages go through the tokenizer's chat template, opened for
the assistant's turn and never closed, so that a step or a continuation can follow directly: just
what sampling would show, and then what the row itself began.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from prefkit.data.pair import Front, Message, Rendered
from prefkit.data.text.kept import ONE_STRING, Kept
from prefkit.data.text.template import (
    ChatTemplate,
    common_start,
    extra_fields,
    read_template,
    say_once,
)
from prefkit.data.text.thoughts import repeated_opening
from prefkit.data.text.tokenizers import check_tokenizer, leading_ids, untrimmed
from prefkit.data.text.turn_starts import TurnStarts, check_begun_thought
from prefkit.errors import ConfigError, PrefkitError, RowError
from prefkit.options.check import check_options
from prefkit.options.prompt import LengthFields, PromptFields


@dataclass(kw_only=True)
class TokenizeOptions(PromptFields, LengthFields):
    """How pairs become token ids: the fields of `prefkit.options.prompt`, where they are explained.

    max_length None sets no limit; chat_template_kwargs may be any mapping.

    Raises:
        ConfigError: a value that no row could be read with.
    """

    def __post_init__(self) -> None:
        self.chat_template_kwargs = self.chat_template_kwargs or {}
        check_options(self)
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}. Give at least 2, or null.")
        if "{prompt}" not in self.prompt_template:
            raise ConfigError(
                f"prompt_template is {self.prompt_template!r}. Write {{prompt}} where the question "
                "goes."
            )
        if not isinstance(self.chat_template_kwargs, Mapping):
            raise ConfigError(
                f"chat_template_kwargs is {self.chat_template_kwargs!r}. Write an object of "
                'variables, such as {"enable_thinking": false}.'
            )

    @property
    def template_variables(self) -> Mapping[str, Any]:
        """chat_template_kwargs as they are after the checks: a mapping."""
        assert isinstance(self.chat_template_kwargs, Mapping)
        return self.chat_template_kwargs

    @classmethod
    def of(cls, options: Any, longest: int | None = None) -> "TokenizeOptions":
        """From an object that has the same fields, as the options of a run do.

        Args:
            options: of a run, a build, a scoring.
            longest: tokens of the longest sequence, where the options leave max_length open.
        """
        values = {field.name: getattr(options, field.name) for field in fields(cls)}
        return cls(**{**values, "max_length": values["max_length"] or longest})


def is_chat(front: Front, options: TokenizeOptions) -> bool:
    """Whether a chat template writes this row: messages, or a string that is read as one."""
    is_text = isinstance(front.prompt, str) and front.system is None
    return not is_text or options.string_prompts == "chat"


class Renderer:
    """Writes prompt and prefix as text, and knows the special tokens around them.

    Args:
        tokenizer: a fast transformers tokenizer.
        options: see `TokenizeOptions`.

    Attributes:
        exact: the tokenizer whose offsets say exactly which characters a token holds.
        bos: ids the tokenizer puts before a raw text of its own accord.
        unknown: the id of the unknown token; None where it doubles as another special token.

    Raises:
        PrefkitError: the tokenizer is not fast.
        ConfigError: `chat_template` is a file that cannot be read, or writes no message.
    """

    def __init__(self, tokenizer: Any, options: TokenizeOptions) -> None:
        check_tokenizer(tokenizer)
        self.tokenizer, self.options = tokenizer, options
        self.exact = untrimmed(tokenizer)
        self.bos = leading_ids(tokenizer)
        others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.unknown = None if tokenizer.unk_token_id in others else tokenizer.unk_token_id
        self.template = ChatTemplate(tokenizer, options.chat_template, options.template_variables)
        self.kept = Kept(self.template, self.write)
        self._openings: set[str] = set()
        self.starts = TurnStarts(self.write)

    def render(self, front: Front) -> Rendered:
        """Raises RowError where the chat template refuses the messages, or loses any of them."""
        options = self.options
        if isinstance(front.prompt, str):
            text = options.prompt_template.replace("{prompt}", front.prompt)
            if not is_chat(front, options):
                self._check_plain(front)
                return Rendered(text + options.joiner, front.prefix, is_chat=False)
            messages: list[Message] = [{"role": "user", "content": text}]
            if system := front.system or options.system_prompt:
                messages.insert(0, {"role": "system", "content": system})
        else:
            messages = list(front.prompt)
            if options.system_prompt is not None or options.prompt_template != "{prompt}":
                say_once(
                    "system_prompt and prompt_template are for prompts that are plain text: those "
                    "that are messages are read as they are."
                )
        return self._chat(front, messages)

    def end_id(self, front: Front, is_chat: bool) -> int:
        """The id that ends a solution: EOS, or in chat form the template's own end of turn.

        Raises:
            RowError: the tokenizer has neither.
        """
        end = self.template.end_of_turn() if is_chat else self.tokenizer.eos_token_id
        if end is None:
            raise RowError(
                front.source,
                front.row,
                "append_eos",
                "asks for an end-of-sequence token, but the tokenizer has none",
                "Set the tokenizer's eos_token, or write append_eos: false.",
            )
        return end

    def write(
        self, front: Front, messages: Sequence[Message], field: str = "prompt", **how: Any
    ) -> str:
        """What the chat template writes for messages of a row.

        Args:
            front: the row's context; the template gets its tools and variables.
            messages: what is written.
            field: of the row, for messages to the user.
            how: `begin`, `go_on`, `variables`: as `ChatTemplate.write` takes them.

        Raises:
            RowError: the template refuses them, or there is none.
        """
        how = {"tools": front.tools, "variables": front.variables, **how}
        try:
            return self.template.write(messages, **how)
        except PrefkitError as error:
            remedy = 'Give the tokenizer a chat template, set chat_template ("plain" joins the '
            remedy += "contents by line breaks), or write prompt and responses as strings."
            raise RowError(front.source, front.row, field, str(error), remedy) from error
        except Exception as error:  # templates raise what they like, jinja's errors among them
            problem = f"is refused by the chat template ({type(error).__name__}: {error})"
            remedy = "Check the order of the roles and the arguments of tool calls (some templates "
            remedy += "want an object, some JSON text), or set chat_template."
            if any(isinstance(message.get("content"), list) for message in messages):
                remedy = ONE_STRING
            raise RowError(front.source, front.row, field, problem, remedy) from error

    def _chat(self, front: Front, messages: list[Message]) -> Rendered:
        """The messages and the beginning of the assistant's turn, as sampling would show them."""
        begun = messages.pop() if messages[-1]["role"] == "assistant" else None
        if not messages:
            problem = "begins with the assistant's turn"
            remedy = "Put the question before it."
            raise RowError(front.source, front.row, "prompt", problem, remedy)
        text = self.write(front, messages, begin=True)
        opening = self._opening(front, messages, text)
        self.kept.check_prompt(front, messages, text)
        said = "" if begun is None else self._begun(front, messages, begun, text)
        said = said[repeated_opening(opening, said) :]
        check_begun_thought(front, opening, said)
        prefix = front.prefix[repeated_opening(opening + said, front.prefix) :]
        found = Rendered(text + said, prefix, True, tuple(messages), len(text), opening + said)
        if said or prefix:
            self.starts.check_header(front, "prompt" if said else "prefix", found, said or prefix)
        return found

    def _opening(self, front: Front, messages: list[Message], text: str) -> str:
        """What the generation prompt adds; looked for once, then known by its text."""
        known = (opening for opening in self._openings if text.endswith(opening))
        opening = max(known, key=len, default="")
        if not opening:
            opening = text[common_start(self.write(front, messages), text) :]
            self._openings.add(opening)
        return opening

    def _begun(self, front: Front, messages: list[Message], begun: Message, generation: str) -> str:
        """What a begun turn says after the generation prompt: its content, exactly."""
        if not extra_fields(begun) and isinstance(begun.get("content"), str):
            return begun["content"]
        whole = [*messages, begun]
        text = self.write(front, whole, go_on=True)
        if not text.startswith(generation):
            problem = "ends in a begun turn that the chat template writes otherwise than it begins "
            problem += "a turn"
            remedy = "Write all of it, thoughts too, into the content of that message."
            raise RowError(front.source, front.row, "prompt", problem, remedy)
        turn = text[len(generation) :]
        self.kept.check_message(front, whole, len(messages), "prompt", turn, text)
        return text[len(generation) :]

    def _check_plain(self, front: Front) -> None:
        """Plain text is no chat: said once, and refused where the row wants a chat template."""
        for name, value in (("tools", front.tools), ("chat_template_kwargs", front.variables)):
            if value:
                problem = "speaks to the chat template, but the prompt is plain text"
                remedy = "Say string_prompts: chat, write the prompt as messages, or remove it."
                raise RowError(front.source, front.row, name, problem, remedy)
        if getattr(self.tokenizer, "chat_template", None):
            say_once(
                "Prompts that are plain text are read as they are, although the tokenizer has a "
                "chat template. string_prompts: chat puts them into it."
            )


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
