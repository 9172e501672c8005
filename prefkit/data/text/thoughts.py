r"""Thoughts in a model's text: their marks, and what is said without them.

Reasoning models write a thought before their answer, and mark it: by a pair of tags
(`<think>…</think>` and similar ones), or by channels (gpt-oss: `<|channel|>analysis<|message|>…`
`<|end|>`, the answer in `<|channel|>final<|message|>`). An answer, a verdict or a step inside a
thought does not count as given. Chat templates write one or both marks by themselves. A thought
that is opened twice, or an answer inside an open one, is text that the model never meets when it is
sampled.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

# Patterns of the marks that open and close a thought: Qwen, DeepSeek, GLM, Nemotron, Seed, …;
# Magistral; Kimi; Sky-T1; Command; Gemma 4. Letters of either case.
_NAMES = r"(?:\w+:)?(?:think|thinking|thought|thoughts|reason|reasoning)"
OPEN = (
    rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|channel>thought"
)
CLOSE = rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<channel\|>"
ANALYSIS = r"<\|channel\|>analysis<\|message\|>"  # gpt-oss: a channel, which <|end|> ends
_TAG = re.compile(rf"(?P<open>{OPEN})|(?P<close>{CLOSE})", re.I)
_OPENED = re.compile(rf"(?:{OPEN}|{ANALYSIS})\s*\Z", re.I)
_CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w+)[^<\n]*<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_STRIPPED = re.compile(r"\s*analysis.*assistant\s*final", re.DOTALL)  # channels, tokens left out
_MARK = re.compile(rf"(?P<open>{OPEN}|{ANALYSIS})|(?P<close>{CLOSE}|<\|end\|>)", re.I)
# Closing marks that end other things as well: they close only what was opened by these.
_SHARED = {"<|end|>": "<|channel|>analysis<|message|>", "<channel|>": "<|channel>thought"}

State = Literal["none", "open", "closed"]


def spoken(text: str) -> str:
    """The text without its thoughts.

    Args:
        text: what a model wrote. A thought that is not closed runs to the end; one whose opening
            tag is in the prompt begins with the text.

    Returns:
        What is left, "" where nothing is. With channels: the content of the final one.
    """
    return parted(text)[0]


def is_thinking(text: str) -> bool:
    """Whether a model's text ends inside a thought.

    With channels: whether it ends in another channel than the final one.
    """
    return parted(text)[1]


def opening_tag(prompt: str) -> str:
    """The tag that opens a thought at the very end of a prompt, "" where it ends otherwise.

    What a model writes after such a prompt begins in the thought.
    """
    match = _OPENED.search(prompt[-200:])
    return match[0] if match else ""


def parted(text: str) -> tuple[str, bool]:
    """(what `spoken` gives, what `is_thinking` gives), from one pass over the text."""
    if "<|channel|>" in text and (channels := list(_CHANNEL.finditer(text))):
        return _final(text, channels)
    if match := _STRIPPED.match(text):
        return text[match.end() :], False
    said: list[str] = []
    at, is_inside = 0, False
    for tag in _TAG.finditer(text):
        if tag["close"]:
            if not is_inside:
                said.clear()  # the thought was opened in the prompt
            at, is_inside = tag.end(), False
        elif not is_inside:
            said.append(text[at : tag.start()])
            is_inside = True
    return "".join(said if is_inside else [*said, text[at:]]), is_inside


def _final(text: str, channels: list[re.Match[str]]) -> tuple[str, bool]:
    said = []
    for channel in channels:
        if channel["name"] == "final":
            end = _CHANNEL_END.search(text, channel.end())
            said.append(text[channel.end() : end.start() if end else len(text)])
    return "".join(said), channels[-1]["name"] != "final"


@dataclass(frozen=True)
class Mark:
    """A mark at the characters `[start, end)` of a text; `opens` or closes a thought."""

    start: int
    end: int
    opens: bool


def marks_of(text: str) -> list[Mark]:
    """The marks of a text in their order."""
    found: list[Mark] = []
    opened = ""  # the mark of the thought that is open
    for match in _MARK.finditer(text):
        mark = match[0].lower()
        opens = match["open"] is not None
        if not opens and opened != _SHARED.get(mark, opened):
            continue
        if not opens and mark.startswith("</") and opened not in ("", mark.replace("/", "", 1)):
            continue  # </thinking> does not end <think>
        opened = mark if opens else ""
        found.append(Mark(match.start(), match.end(), opens))
    return found


def marks_after(before: str, text: str) -> list[Mark]:
    """The marks of a text that follows another, their positions in `text`. What closes a thought
    may depend on how it was opened: gpt-oss ends every channel by one token."""
    start = len(before)
    return [
        Mark(mark.start - start, mark.end - start, mark.opens)
        for mark in marks_of(before + text)
        if mark.start >= start
    ]


def closes_nothing(before: str, text: str) -> bool:
    """Whether a mark of `text` closes a thought where none is open."""
    is_open = state_of(before) == "open"
    for mark in marks_after(before, text):
        if not (mark.opens or is_open):
            return True
        is_open = mark.opens
    return False


def state_of(text: str) -> State:
    """Whether a thought is open at the text's end, was closed in it, or none was begun."""
    marks = marks_of(text)
    if not marks:
        return "none"
    return "open" if marks[-1].opens else "closed"


def repeated_opening(before: str, text: str) -> int:
    """Characters at the start of `text` that only open the thought which `before` has just opened.

    A generation prompt that ends in `<think>` and a response that begins with `<think>` mean one
    mark. White space after the mark counts with it, as far as `before` has it, too.
    """
    marks = marks_of(before)
    if not marks or not marks[-1].opens or before[marks[-1].end :].strip():
        return 0
    mark = before[marks[-1].start : marks[-1].end]
    space = before[marks[-1].end :]
    skipped = len(text) - len(text.lstrip())
    if not text.startswith(mark, skipped):
        return 0
    end = skipped + len(mark)
    common = 0
    for ours, theirs in zip(space, text[end:], strict=False):
        if ours != theirs:
            break
        common += 1
    return end + common


def texts_of(content: Any) -> list[str]:
    """The texts of a message's content, a string or a list of parts; thoughts apart from the rest.

    A template may write a thought in its own form, but it has to write all of these somewhere.
    """
    if content is None:
        return []
    if isinstance(content, str):
        pieces, at = [], 0
        for mark in marks_of(content):
            pieces.append(content[at : mark.start])
            at = mark.end
        return [piece.strip() for piece in (*pieces, content[at:]) if piece.strip()]
    return [text for part in content for text in texts_of(part.get("text"))]
