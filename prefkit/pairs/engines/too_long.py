"""Prompts that a server's context does not hold: how servers say so, and what is asked instead.

A server refuses a prompt that fits whenever `max_tokens` more would not, so fewer are asked for
before the prompt is given up. One question among thousands must not end a build.
"""

import re
from typing import Any

# Fewer tokens than these are not asked for: no solution or step is so short.
FEWEST = 16
_STATUS = (400, 413, 422, 500)
_WORDS = re.compile(
    r"context.?(length|size|window)|max_model_len|longer than the (maximum|model)"
    r"|maximum (model|input|sequence|allowed) length"
    r"|(prompt|input|request|sequence|messages?)\b[^.]{0,60}\btoo (long|large)",
    re.IGNORECASE,
)
# vLLM, SGLang and OpenAI write both numbers in one of these ways.
_CONTEXT = re.compile(r"(?:context|model) length (?:is |of |\()(?:only )?(\d+)", re.IGNORECASE)
_PROMPT = re.compile(
    r"(\d+) (?:tokens )?(?:in|from) the (?:prompt|messages|input)|(\d+) (?:input|prompt) tokens"
    r"|(?:prompt|input) \((?:length )?(\d+)",
    re.IGNORECASE,
)


class TooLong(Exception):
    """A server refused a request for its length; the text is the server's."""


def is_too_long(error: Any) -> bool:
    """Whether an openai APIStatusError blames the length of a request, prompt and rest together."""
    if error.status_code == 413:
        return True
    return error.status_code in _STATUS and bool(_WORDS.search(words_of(error)))


def words_of(error: Any) -> str:
    """All that the server wrote."""
    return getattr(error.response, "text", "") or str(error)


def fewer_tokens(words: str, asked: int) -> int | None:
    """How many tokens to ask for after a refusal; None = the prompt itself is too long.

    What the server's numbers leave, else half. The numbers are believed only where they leave
    something: vLLM 0.15 gives the context less `max_tokens` as the context.

    Args:
        words: the server's.
        asked: `max_tokens` of the refused request.
    """
    if asked <= FEWEST:
        return None
    context, prompt = _CONTEXT.search(words), _PROMPT.search(words)
    if context and prompt and "at least" not in words:
        left = int(context[1]) - int(next(filter(None, prompt.groups())))
        if 0 < left < asked:
            return left
    return max(FEWEST, asked // 2)
