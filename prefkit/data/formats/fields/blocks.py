"""Message content as one text: plain strings, and lists of text, code and execution blocks.

Execution blocks are what the interpreter printed: the model did not write them. Their characters
are returned as masked spans, together with the line break that sets them off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefkit.data.formats.fields.row import Row
from prefkit.errors import ConfigError

# How a block is written: what stands before and after its content. "plain" adds only a line break
# between two blocks that no white space separates. "tagged" is the chat format of the SCDPO
# release (arXiv 2407.00782), for models that have these special tokens.
BLOCK_STYLES: Mapping[str, Mapping[str, tuple[str, str]] | None] = {
    "plain": None,
    "tagged": {kind: (f"<|{kind}|>", "<|endofblock|>") for kind in ("text", "code", "execution")},
}
KINDS = ("text", "code", "execution")


@dataclass(frozen=True)
class Content:
    """Rendered content: the text and the `(start, end)` spans of tool output in it."""

    text: str
    tool_output: tuple[tuple[int, int], ...] = ()


def check_block_style(style: str) -> None:
    if style not in BLOCK_STYLES:
        raise ConfigError(f"block_style is {style!r}. Choose one of: {', '.join(BLOCK_STYLES)}.")


def render_content(row: Row, content: Any, field: str, style: str = "plain") -> Content:
    """Join the blocks of one message.

    Args:
        row, field: for messages.
        content: a string, or a list of `{"type": "text"|"code"|"execution", "content": str}`
            (`"text"` is read as a synonym of the key `"content"`).
        style: a key of BLOCK_STYLES.

    Raises:
        RowError: a block of another kind or without text.
    """
    if isinstance(content, str) or content is None:
        return Content(row.as_text(content or "", field, empty=True))
    if not isinstance(content, list):
        problem = f"is a {type(content).__name__}"
        raise row.error(field, problem, "Write a string or a list of blocks.")
    text = ""
    spans: list[tuple[int, int]] = []
    for place, block in enumerate(content):
        kind, body = _read_block(row, block, f"{field}[{place}]")
        gap = _separator(text, body, style)
        piece = gap + _dress(body, kind, style)
        if kind == "execution":
            spans.append((len(text), len(text) + len(piece)))
        elif spans and spans[-1][1] == len(text):  # the break after tool output belongs to it
            spans[-1] = (spans[-1][0], len(text) + len(gap))
        text += piece
    return Content(text, tuple(span for span in spans if span[1] > span[0]))


def join_front(front: Content, continuation: Content, style: str = "plain") -> str:
    """The shared steps, ended so that the continuation can follow them directly."""
    if not front.text:
        return ""
    return front.text + _separator(front.text, continuation.text, style)


def _read_block(row: Row, block: Any, field: str) -> tuple[str, str]:
    remedy = 'Write blocks as {"type": "text"|"code"|"execution", "content": …}.'
    if not isinstance(block, dict):
        raise row.error(field, f"is a {type(block).__name__}, not a block", remedy)
    kind = block.get("type")
    if kind not in KINDS:
        raise row.error(field, f"has the type {kind!r}, which is none of {KINDS}", remedy)
    body = block.get("content")
    if body is None:
        body = block.get("text")
    if body is None:
        raise row.error(field, "has no content", remedy)
    return kind, row.as_text(body, field, empty=True)


def _separator(before: str, after: str, style: str) -> str:
    if BLOCK_STYLES[style] is not None or not before or not after:
        return ""
    return "" if before[-1].isspace() or after[0].isspace() else "\n"


def _dress(body: str, kind: str, style: str) -> str:
    tags = BLOCK_STYLES[style]
    if tags is None:
        return body
    opening, closing = tags[kind]
    return opening + body + closing
