"""Prompt and prefix as the one string that precedes the responses, and what ends a solution.

Raw strings are taken as they are; messages go through the tokenizer's chat template, opened for
the assistant's turn and never closed, so that a step or a continuation can follow directly.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers.processors import TemplateProcessing

from prefkit.data.pair import Front, Message
from prefkit.errors import ConfigError, PrefkitError, RowError

# What `chat_template="plain"` stands for: contents on lines of their own, no role tokens. For
# conversational rows on a base model that has no template of its own.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"
_PROBE = "prefkit-probe"


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """How pairs become token ids.

    Attributes:
        max_length: most tokens of a full sequence, end-of-sequence token included; None = no limit.
        too_long: "error" = refuse the row, "skip" = leave it out and list it, "truncate_end" = cut
            the end of whole solutions. Prompt, prefix and single steps are never cut: a row that
            would need it is refused, or skipped with "skip".
        string_prompts: "raw" = a string prompt is the text itself; "chat" = it is a user message.
        prompt_template: wraps string prompts, e.g. "Question: {prompt}\\nAnswer:".
        joiner: put between a raw string prompt and what follows it (Step-DPO's alpaca template
            uses "\\n", its deepseek-math template " ").
        system_prompt: system message put before string prompts read as chat.
        chat_template: a Jinja template in place of the tokenizer's own, the path of a file that
            holds one, or "plain".
        chat_template_kwargs: extra variables of the template, e.g. {"enable_thinking": False}.
    """

    max_length: int | None = None
    too_long: Literal["error", "skip", "truncate_end"] = "error"
    string_prompts: Literal["raw", "chat"] = "raw"
    prompt_template: str = "{prompt}"
    joiner: str = ""
    system_prompt: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choice("too_long", self.too_long, ("error", "skip", "truncate_end"))
        _check_choice("string_prompts", self.string_prompts, ("raw", "chat"))
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


@dataclass(frozen=True)
class Rendered:
    """A front as text.

    Attributes:
        prompt: everything before the prefix.
        prefix: the correct steps, or "".
        is_chat: whether `prompt` was written by a chat template (which writes its own BOS).
    """

    prompt: str
    prefix: str
    is_chat: bool


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse tokenizers that cannot say which characters a token holds.

    Raises:
        PrefkitError: the tokenizer is not a fast one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise PrefkitError(
            f"{type(tokenizer).__name__} is not a fast tokenizer and gives no character offsets, "
            "without which the scored tokens cannot be found exactly. Save the model with a "
            "tokenizer.json (AutoTokenizer loads it as a fast tokenizer)."
        )


class Renderer:
    """Renders fronts and knows the special tokens around them.

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
        self.exact = _untrimmed(tokenizer)
        self.bos = _leading_ids(tokenizer)
        others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.unknown = None if tokenizer.unk_token_id in others else tokenizer.unk_token_id
        self._end_of_turn: int | None = None
        self._template = read_template(options.chat_template)
        if options.chat_template is not None:
            self._check_template(options.chat_template)

    def render(self, front: Front) -> Rendered:
        """Raises RowError where the chat template refuses the messages."""
        options = self.options
        if isinstance(front.prompt, str):
            text = options.prompt_template.replace("{prompt}", front.prompt)
            if options.string_prompts == "raw":
                return Rendered(text + options.joiner, front.prefix, is_chat=False)
            messages: list[Message] = [{"role": "user", "content": text}]
            if options.system_prompt is not None:
                messages.insert(0, {"role": "system", "content": options.system_prompt})
        else:
            messages = list(front.prompt)
        return Rendered(self._chat(front, messages), front.prefix, is_chat=True)

    def end_id(self, front: Front, is_chat: bool) -> int:
        """The id that ends a solution: EOS, or in chat form the template's own end of turn.

        Raises:
            RowError: the tokenizer has neither.
        """
        end = self._find_end_of_turn() if is_chat else self.tokenizer.eos_token_id
        if end is None:
            raise RowError(
                front.source,
                front.row,
                "append_eos",
                "asks for an end-of-sequence token, but the tokenizer has none",
                "Set the tokenizer's eos_token, or write append_eos: false.",
            )
        return end

    def _chat(self, front: Front, messages: list[Message]) -> str:
        continues = messages[-1]["role"] == "assistant"  # a prompt that begins the answer itself
        try:
            text = self._apply(
                messages, add_generation_prompt=not continues, continue_final_message=continues
            )
        except PrefkitError as error:
            remedy = 'Give the tokenizer a chat template, set chat_template ("plain" joins the '
            remedy += "contents by line breaks), or write prompt and responses as strings."
            raise RowError(front.source, front.row, "prompt", str(error), remedy) from error
        except Exception as error:  # templates raise what they like, jinja's errors among them
            problem = f"is refused by the chat template ({type(error).__name__}: {error})"
            remedy = "Check the order of the roles, or set chat_template."
            raise RowError(front.source, front.row, "prompt", problem, remedy) from error
        asked = [str(m["content"]).strip() for m in messages if m["role"] == "user"]
        if asked and asked[-1] not in text:  # earlier turns may be left out, the question not
            problem = f"is lost in the chat template, which writes {text[:60]!r} for it"
            remedy = "Set chat_template to a template that writes the messages' content."
            raise RowError(front.source, front.row, "prompt", problem, remedy)
        return text

    def _check_template(self, given: str) -> None:
        """A template that loses every question is refused before any row is read."""
        try:
            text = self._apply([{"role": "user", "content": _PROBE}], add_generation_prompt=True)
        except Exception:  # other roles, or no valid Jinja: the rows' own messages will tell
            return
        if _PROBE not in text:
            raise ConfigError(
                f"chat_template {given[:80]!r} does not write the messages' content. Give a Jinja "
                'template, the path of a file that holds one, or "plain".'
            )

    def _apply(self, messages: list[Message], **how: bool) -> str:
        template = self._template
        if template is None and not getattr(self.tokenizer, "chat_template", None):
            raise PrefkitError("holds messages, but the tokenizer has no chat template")
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            chat_template=template,
            **how,
            **self.options.chat_template_kwargs,
        )

    def _find_end_of_turn(self) -> int | None:
        """The first special token that the template writes after an assistant's message."""
        if self._end_of_turn is None:
            self._end_of_turn = self._probe_end_of_turn()
        return self._end_of_turn

    def _probe_end_of_turn(self) -> int | None:
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        eos = self.tokenizer.eos_token_id
        try:
            text = self._apply(turn, add_generation_prompt=False, continue_final_message=False)
        except Exception:  # a template for other roles: the pairs' own messages may still render
            return eos
        _, found, tail = text.rpartition(_PROBE)
        if not found:
            return eos
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special.update(self.tokenizer.all_special_ids)
        ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
        return next((i for i in ids if i in special), eos)


def read_template(given: str | None) -> str | None:
    """The template itself: what the name "plain" or the file stands for, or the text as it is."""
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


def _untrimmed(tokenizer: Any) -> Any:
    """The tokenizer, or a copy of it that leaves white space in the offsets.

    Post-processors with trim_offsets (RoBERTa, OPT, …) take white space out of them, and a token of
    nothing but white space is then nowhere. Here nothing else is wanted of a post-processor: the
    special tokens it would add are not asked for.
    """
    processor = tokenizer.backend_tokenizer.post_processor
    if processor is None or b'"trim_offsets":true' not in processor.__getstate__():
        return tokenizer
    copied = copy.deepcopy(tokenizer)
    copied.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    return copied


def _leading_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text by itself (a BOS token, for most that have one)."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    return []


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}. Choose one of: {', '.join(choices)}.")
