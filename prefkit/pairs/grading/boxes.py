r"""The answer in \boxed{…}: the last box, or several boxes at the end that are one answer."""

import re
from dataclasses import dataclass

# An escaped character is stepped over, so that the braces of \{1, 2\} do not count.
_BRACES = re.compile(
    r"\\(?:boxed|fbox)\s{0,9}\{|\\(?:boxed|fbox)[ \t]{1,9}(?P<bare>[^\s\\{}$]+)|\\.|[{}]", re.DOTALL
)
MAX_BOXES = 50  # of one answer
_CLOSE, _NEAR = 10, 70  # characters between boxes of one answer: no words, or a joining one
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
_JOIN = re.compile(r"\b(?:and|or)\b|[,;&]")
_STOP = re.compile(r"[.!?]\s|\n[ \t]*\n|\b(?:not|no|wait|actually|instead|thus|hence|so)\b", re.I)


@dataclass(frozen=True)
class Box:
    """A box: where its command starts, what it holds (None = it is not closed), where it ends."""

    start: int
    content: str | None
    end: int


def boxes_of(text: str) -> list[Box]:
    """All boxes in the order they start; of nested ones the innermost."""
    opened: list[tuple[int, int] | None] = []  # start and content's start; None = any other brace
    found: list[Box] = []
    for match in _BRACES.finditer(text):
        if match["bare"]:
            found.append(Box(match.start(), match["bare"].rstrip(".,;"), match.end()))
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append((match.start(), match.end()) if match[0] != "{" else None)
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start is not None and not (found and found[-1].start > start[0]):
                found.append(Box(start[0], text[start[1] : match.start()], match.end()))
    unclosed = [Box(start[0], None, len(text)) for start in opened if start is not None]
    return sorted([*found, *unclosed[-1:]], key=lambda box: box.start)


def last_boxes(text: str) -> list[Box]:
    """The boxes at the end that are one answer: \\boxed{1} and \\boxed{2}. [] = there is no box.

    They stand close together, or are joined by a word or a comma; a sentence that ends between
    them, or a repeated content, parts them. At most `MAX_BOXES` + 1: then there are more.
    """
    found = boxes_of(text)
    kept = found[-1:]  # from the last one backwards
    contents = {box.content for box in kept}
    for box in reversed(found[:-1]):
        between = text[box.end : kept[-1].start]
        is_close = len(between) < _CLOSE and not _WORD.search(between)
        if not (is_close or (len(between) < _NEAR and _JOIN.search(between))):
            break
        if _STOP.search(between) or not (box.content or "").strip():
            break
        if box.content in contents or len(kept) > MAX_BOXES:
            break
        kept.append(box)
        contents.add(box.content)
    return kept[::-1]
