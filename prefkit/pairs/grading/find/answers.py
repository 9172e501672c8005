r"""Where a solution states its answer.

A solution is prose; its answer is a few characters of it. The marks looked for, in this order:
`#### 72` as the last line (GSM8K), `<answer>72</answer>` (R1), `\boxed{…}` (MATH), a line `A: 18`
or `Answer: 18` or a sentence "the answer is …", then whatever comes last: a formula, a number, or
what follows "=". What another of these marks states counts too: where they differ, that is told
(`Found.rivals`). Every rule passes over the text once, so a megabyte of digits or braces costs
milliseconds.
"""

import re
from collections import deque
from dataclasses import replace

from prefkit.errors import ConfigError
from prefkit.pairs.grading.compare.normal_form import unescaped
from prefkit.pairs.grading.find.found import Found, corrected_to, is_taken_back
from prefkit.pairs.grading.find.numbers import known_unit, tidy
from prefkit.pairs.grading.find.sentences import (
    PART,
    TAKEN_BACK,
    last,
    last_number,
    stated,
    stated_in,
)
from prefkit.pairs.grading.find.spans import MAX_BOXES, Box, last_boxes
from prefkit.pairs.grading.units import is_unit

RULES = ("auto", "boxed", "hash", "last_number")
MAX_TEXT = 100_000  # characters at the end of a solution in which "auto" looks

_HASH = re.compile(r"####[ \t]*([^\n]*)")
_ENUMERATED = r"\d+(?:\.\d+)*[.):]?[ \t]+[A-Z][a-z]|\d+(?:\.\d+)*[.):][ \t]+\S"
_HEADING = re.compile(  # of Markdown, with as many signs
    r"(?i:step|final|answer|conclusion|solution|result|summary|verification|check|case|part|note"
    rf"|explanation)\b|{_ENUMERATED}|.*:$"
)
_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.I | re.DOTALL)
_FINAL = re.compile(r"\bfinal[ \t]+answer[ \t]+is\b[ \t:*_]*(?=[$\d\\-])", re.I)
_DROPPED = re.compile(r"<<[^<>\n]*>>|\[asy\](?:[^\[]|\[(?!/?asy\]))*\[/asy\]")
_TITLE = re.compile(r"#{1,6}[ \t]+(.*)")
_OPEN_END = re.compile(r"[ \t>*_#-]*(?:the[ \t]+)?final[ \t]+answer[ \t:*_]*\Z", re.I)
_BOX_AND_UNIT = re.compile(r"boxed\{[^{}]{1,20}\}[\s$\\]*([A-Za-z]+)[\s,$]*(?:and[\s$]*)?\Z")
_SHORT = 100  # characters of an answer behind ####


def check_rule(how: str) -> None:
    """Raises ConfigError for what is none of `RULES` and no `regex:PATTERN` that compiles."""
    if how in RULES:
        return
    if not how.startswith("regex:") or how == "regex:":
        raise ConfigError(
            f"answer is {how!r}. Choose one of: {', '.join(RULES)}, regex:PATTERN (the first group "
            "of its last match is the answer)."
        )
    try:
        re.compile(how.removeprefix("regex:"))
    except re.error as error:
        raise ConfigError(
            f"answer is {how!r}, whose pattern is not a regular expression: {error}."
        ) from None


def final_answer(text: str, how: str = "auto") -> str | None:
    """The answer that a solution states; see `find`."""
    return find(text, how).answer


def find(text: str, how: str = "auto") -> Found:
    r"""The answer that a solution states, and how it was found.

    Args:
        text: a solution, without thoughts (`prefkit.data.text.thoughts.spoken`). Of one with more
            than `MAX_TEXT` characters the end is read.
        how: auto = the rules above in their order; boxed, hash, last_number = that rule alone;
            regex:PATTERN = the first group (or all) of the pattern's last match. A pattern of a
            user can take for ever: run it where it can be killed, as `Grader` does.

    Raises:
        ConfigError: `how` is none of these.
    """
    check_rule(how)
    if how.startswith("regex:"):
        return Found(_by_pattern(text, how.removeprefix("regex:")), "pattern")
    if how != "auto":
        rule = {"boxed": _boxed, "hash": _hash, "last_number": last_number}[how]
        return rule(text) or Found(None, how)
    return _auto(unescaped(_DROPPED.sub("", text[-MAX_TEXT:])))


def _auto(text: str) -> Found:
    """By the first mark that states an answer, and what the others state."""
    marks, tagged, boxed = _hash(text), _tagged(text), _boxed(text)
    line = text.rstrip().rpartition("\n")[2]
    if marks and "####" in line and tidy(line.rpartition("####")[2]) == marks.answer:
        return _beside(marks, tagged, boxed, stated(text))
    if tagged:
        return _beside(tagged, boxed)
    if boxed:
        return boxed
    if _is_cut_off(line):
        return Found(None, "auto")
    found = stated(text) or last(text) or Found(None, "auto")
    if marks and marks.answer and found.answer and marks.answer != found.answer:
        return replace(found, others=(*found.others, marks.answer))
    return found


def _is_cut_off(line: str) -> bool:
    """Whether the last line is the heading of what is missing: Final Answer, Step 3."""
    heading = _TITLE.match(line)
    return bool(_OPEN_END.match(line) or (heading and _HEADING.match(heading[1]))) and not stated(
        line
    )


def _beside(found: Found, *indices: Found | None) -> Found:
    """An answer, and those of other marks that differ from it."""
    others = [index.answer for index in indices if index and index.answer != found.answer]
    rivals = tuple(other for other in others if other and any(map(str.isalnum, other)))
    return replace(found, rivals=found.rivals + rivals)


def _by_pattern(text: str, pattern: str) -> str | None:
    matches = deque(re.finditer(pattern, text), maxlen=1)
    if not matches:
        return None
    match = matches[0]
    return ((match[1] if match.re.groups else match[0]) or "").strip() or None


def _hash(text: str) -> Found | None:
    """Behind the last ####, where a value stands there and not the words of a heading."""
    values = (tidy(match[1]) for match in _HASH.finditer(text))
    kept = deque((v for v in values if v and len(v) <= _SHORT and not _HEADING.match(v)), maxlen=1)
    return Found(kept[0], "hash") if kept else None


def _tagged(text: str) -> Found | None:
    """Between the last <answer> and </answer>: all of a line, or what longer text states there."""
    tags = deque(_TAGGED.finditer(text), maxlen=1)
    if not tags:
        return None
    inner, end = tags[0][1].strip(), tags[0].end()
    if "\n" in inner or "boxed" in inner or "answer" in inner.casefold():
        said = _boxed(inner) or stated(inner) or last(inner) or Found(None, "tag")
    else:
        said = stated_in(inner)
    return _judged(replace(said, by="tag"), text, end)


def _boxed(text: str) -> Found | None:
    r"""The box, or the boxes, at the end. A last box that is empty or not closed is no answer."""
    boxes = last_boxes(text)
    if not boxes:
        return None
    contents = [tidy(box.content or "") for box in boxes]
    content, end = contents[-1], boxes[-1].end
    if content is None:
        return Found(None, "boxed")
    unit = known_unit(text, end)
    final = _FINAL.search(text, end)
    if final and (said := stated(text[final.start() :])) and said.answer != content:
        return replace(said, others=(content + unit,))
    if len(boxes) == 1:
        found = Found(content + unit, "boxed")
    else:
        found = Found(", ".join(filter(None, contents)) + unit, "boxed", (content,))
    doubt = PART if len(boxes) > MAX_BOXES or _follows_another(text, boxes[0]) else ""
    return _judged(replace(found, doubt=doubt), text, end)


def _follows_another(text: str, box: Box) -> bool:
    r"""Whether a box is the second part of a quantity: \boxed{1} hour \boxed{30} minutes."""
    match = _BOX_AND_UNIT.search(text[max(0, box.start - 60) : box.start].rstrip("$\\ "))
    return bool(match) and is_unit(match[1])  # type: ignore[index]


def _judged(found: Found, text: str, end: int) -> Found:
    """A marked answer, and what the text behind it says against it."""
    if found.answer is None:
        return found
    rivals = (*found.rivals, *corrected_to(text, end, found.answer))
    after = stated(text[end:])
    if after and after.answer and after.answer != found.answer and _is_value(after.answer):
        rivals = (*rivals, after.answer)
    doubt = found.doubt or (TAKEN_BACK if is_taken_back(text, end) else "")
    return replace(found, rivals=rivals, doubt=doubt)


def _is_value(answer: str) -> bool:
    """Whether it is a number or a formula, and no prose: "the answer is correct"."""
    return len(answer) <= 60 and any(map(str.isdigit, answer))
