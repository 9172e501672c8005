"""A solution as a list of steps whose joined texts are the solution again, to the character.

lines       every line that holds something is a step; empty lines belong to the step before
numbered    "Step 1: …", "Step 2: …" at the start of a line (Step-DPO, arXiv 2406.18629)
paragraphs  steps are set apart by an empty line

A line of nothing but white space counts as empty. Every line is looked at once, so that no text
takes long.
"""

import re

STYLES = ("lines", "numbered", "paragraphs")

_LABEL = re.compile(r"[ \t]*Step[ \t]+\d+[ \t]*[:.]")


def split_steps(text: str, style: str) -> list[str]:
    """The steps of a solution, each with the break that ends it.

    Args:
        text: a solution, or the rest of one.
        style: one of `STYLES`.

    Returns:
        Non-empty strings; `"".join(split_steps(text, style)) == text` always. Text before the
        first "Step 1:" belongs to the first step, and so do empty lines before anything else.
    """
    pieces: list[list[str]] = [[]]
    has_begun, is_after_gap = False, True
    for line in _lines(text):
        if _begins(line, style, is_after_gap):
            if has_begun:
                pieces.append([])
            has_begun = True
        pieces[-1].append(line)
        is_after_gap = not line.strip()
    return [step for piece in pieces if (step := "".join(piece))]


def label_of(step: str, style: str) -> str:
    """A step up to its own words ("Step 3:", with what stands before it), "" in other styles."""
    at = 0
    for line in _lines(step) if style == "numbered" else []:
        match = _LABEL.match(line)
        if match:
            return step[: at + match.end()]
        at += len(line)
    return ""


def _begins(line: str, style: str, is_after_gap: bool) -> bool:
    """Whether a line is the first one of a step; `is_after_gap` = the line before it is empty."""
    if style == "numbered":
        return _LABEL.match(line) is not None
    return bool(line.strip()) and (style == "lines" or is_after_gap)


def _lines(text: str) -> list[str]:
    """The lines, each with its line break; only "\\n" breaks a line."""
    return [line + "\n" for line in text.split("\n")[:-1]] + [text.rpartition("\n")[2]]
