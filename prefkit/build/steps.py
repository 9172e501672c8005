"""A solution as a list of steps whose joined texts are the solution again, to the character.

lines       every line that holds something is a step; empty lines belong to the step before
numbered    "Step 1: …", "Step 2: …" at the start of a line (Step-DPO, arXiv 2406.18629)
paragraphs  steps are set apart by an empty line
"""

import itertools
import re

from prefkit.errors import ConfigError

STYLES = ("lines", "numbered", "paragraphs")

# Where a step begins: the place right after the break that ends the step before it.
_BREAKS = {
    "lines": re.compile(r"\n+(?=[^\n])"),
    "numbered": re.compile(r"\n+(?=[ \t]*Step[ \t]+\d+[ \t]*[:.])"),
    "paragraphs": re.compile(r"\n[ \t]*\n+(?=[^\n])"),
}
# A step's label, and what stands before the first one ("Let's think step by step.").
_LABEL = re.compile(r"(?:[^\n]*\n)*?[ \t]*Step[ \t]+\d+[ \t]*[:.]")
# Sampling one step alone stops here; the break is put back by the caller.
_STOPS = {"lines": "\n", "numbered": "\nStep ", "paragraphs": "\n\n"}


def check_style(style: str) -> None:
    """Raises ConfigError for a style that is none of `STYLES`."""
    if style not in STYLES:
        raise ConfigError(f"steps is {style!r}. Choose one of: {', '.join(STYLES)}.")


def split_steps(text: str, style: str) -> list[str]:
    """The steps of a solution, each with the break that ends it.

    Args:
        text: a solution, or the rest of one.
        style: one of `STYLES`.

    Returns:
        Non-empty strings; `"".join(split_steps(text, style)) == text` always. Text before the
        first "Step 1:" belongs to the first step.
    """
    cuts = [0, *(match.end() for match in _BREAKS[style].finditer(text)), len(text)]
    steps = [text[a:b] for a, b in itertools.pairwise(cuts) if a < b]
    if len(steps) > 1 and not _is_step(steps[0], style):
        steps[:2] = ["".join(steps[:2])]
    return steps


def _is_step(text: str, style: str) -> bool:
    """Whether the first piece of a solution is a step: not white space, not an opening phrase."""
    return _LABEL.match(text) is not None if style == "numbered" else bool(text.strip())


def label_of(step: str, style: str) -> str:
    """What stands before a step's own words ("Step 3:"), "" in the other styles."""
    match = _LABEL.match(step) if style == "numbered" else None
    return match[0] if match else ""


def stop_of(style: str) -> str:
    """The text at which sampling a single step stops."""
    return _STOPS[style]
