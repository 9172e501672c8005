"""Solutions with code: fenced text, and the typed blocks that training reads, without loss.

    ```python          code      written by the model
    ```output          execution written by the interpreter, masked in training

Fences stay in the blocks' contents, so the joined contents are the text again, to the character,
also as `prefkit.data.formats.fields.blocks` joins them in its style "plain".
"""

import re

from prefkit.pairs.steps import split_steps

Block = dict[str, str]  # {"type": "text" | "code" | "execution", "content": …}

_TYPES = {"python": "code", "py": "code", "output": "execution"}
# From a fence at the start of a line to the line that closes it, or to the end of the text.
_FENCED = re.compile(
    r"^```(?P<name>python|py|output)[ \t]*\n(?P<body>.*?)(?:^```[ \t]*(?:\n|\Z)|\Z)",
    re.DOTALL | re.MULTILINE,
)
_CLOSED = re.compile(r"(?:^|\n)```[ \t]*\n?\Z")


def split_blocks(text: str) -> list[Block]:
    """A solution as typed blocks.

    Args:
        text: of a solution; a block that is not closed runs to its end.

    Returns:
        Blocks whose joined contents are `text`; [] for "".
    """
    blocks: list[Block] = []
    at = 0
    for match in _FENCED.finditer(text):
        blocks += _text(text[at : match.start()])
        blocks.append({"type": _TYPES[match["name"]], "content": match[0]})
        at = match.end()
    return blocks + _text(text[at:])


def split_code_steps(text: str, style: str) -> list[str]:
    """A solution's steps where some are code: a block of code with its output is one step.

    Args:
        text: of a solution.
        style: of the steps in its text (`steps.STYLES`).

    Returns:
        Steps whose joined texts are `text`. White space between two blocks joins the step before.
    """
    steps: list[str] = []
    after_code = False
    for block in split_blocks(text):
        if block["type"] == "text":
            pieces = split_steps(block["content"], style)
        else:
            pieces = [block["content"]]
        for piece in pieces:
            belongs = block["type"] == "execution" and after_code
            if steps and (belongs or not piece.strip()):
                steps[-1] += piece
            else:
                steps.append(piece)
        after_code = block["type"] == "code"
    return steps


def code_of(block: Block) -> str:
    """A code block's code, without its fences."""
    body = block["content"].split("\n", 1)[1] if "\n" in block["content"] else ""
    return _CLOSED.sub("\n", body).lstrip("\n")


def is_closed(block: Block) -> bool:
    """Whether a fenced block has its closing line."""
    return bool(_CLOSED.search(block["content"].split("\n", 1)[-1]))


def output_block(output: str) -> str:
    """What an interpreter printed, as a closed block of a solution; fences in it are defused."""
    lines = output.replace("```", "'''")
    return f"```output\n{lines}{'' if not lines or lines.endswith(chr(10)) else chr(10)}```\n"


def _text(piece: str) -> list[Block]:
    return [{"type": "text", "content": piece}] if piece else []
