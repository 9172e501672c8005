"""Where a turn's text thinks: the marks that open and close a thought.

Reasoning models write their thoughts between two marks, and chat templates write one or both of
them by themselves. A thought that is opened twice, or an answer inside an open one, is text that
the model never meets when it is sampled.
"""

import re
from dataclasses import dataclass
from typing import Literal

from prefkit.data.tokens.thoughts import ANALYSIS, CLOSE, OPEN

_MARK = re.compile(rf"(?P<open>{OPEN}|{ANALYSIS})|(?P<close>{CLOSE}|<\|end\|>)", re.I)
# Closing marks that end other things as well: they close only what was opened by these.
_SHARED = {"<|end|>": "<|channel|>analysis<|message|>", "<channel|>": "<|channel>thought"}

State = Literal["none", "open", "closed"]


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
    """The marks of a text that follows another, their places in `text`. What closes a thought may
    depend on how it was opened: gpt-oss ends every channel by one token."""
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
