r"""Where a solution states its answer.

A solution is prose; its answer is a few characters of it. The places looked at, in this order:
`#### 72` (GSM8K), the last `\boxed{…}` (MATH), a line `A: 18` or `Answer: 18`, "the answer is …",
what follows the last "=" of the last line, and the last number anywhere. Every rule passes over
the text once, so a megabyte of digits or braces costs milliseconds.
"""

import re
from collections import deque

from prefkit.errors import ConfigError

WAYS = ("auto", "boxed", "hash", "last_number")

_HASH = re.compile(r"####[ \t]*([^\n]*)")
# An escaped character is stepped over, so that the braces of \{1, 2\} do not count.
_BRACES = re.compile(r"\\(?:boxed|fbox)[ \t]*\{|\\.|[{}]", re.DOTALL)
_LINE = re.compile(
    r"^[ \t>*_]*(?:final[ \t]+answer|answer|ans|A)[ \t*_]*[:=][ \t*_]*(\S[^\n]*)$", re.I | re.M
)
_SENTENCE = re.compile(r"\banswer[ \t]+(?:is|are|=)[ \t:]*(\S[^\n]*)", re.I)
_NUMBER = re.compile(
    r"(?<![\w.])[-−]?[$€£]?[-−]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+(?!\w))?%?(?![\w])"
)
# A number that prose may follow: "18 dollars a day" is cut there, "18x + 2" is not.
_LEADING = re.compile(
    r"[-−]?[$€£]?[-−]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?%?(?=[.,;:!?]*(?:\s+[A-Za-z(]|\s*$))"
)
_UNIT = re.compile(r"[ \t]+(?:(?:square|cubic|sq\.?|cu\.?)[ \t]+)?[A-Za-z°]+(?=[.!]?\s*$)")
_MARK = re.compile(r"<<[^<>\n]*>>")


def check_way(how: str) -> None:
    """Raises ConfigError for a way that is none of `WAYS` and no `regex:PATTERN` that compiles."""
    if how in WAYS:
        return
    if not how.startswith("regex:") or how == "regex:":
        raise ConfigError(
            f"answer is {how!r}. Choose one of: {', '.join(WAYS)}, regex:PATTERN (the first group "
            "of its last match is the answer)."
        )
    try:
        re.compile(how.removeprefix("regex:"))
    except re.error as error:
        raise ConfigError(
            f"answer is {how!r}, whose pattern is not a regular expression: {error}."
        ) from None


def final_answer(text: str, how: str = "auto") -> str | None:
    r"""The answer that a solution states, as written, without surrounding white space.

    Args:
        text: a solution.
        how: auto = the rules above in their order; boxed, hash, last_number = that rule alone;
            regex:PATTERN = the first group (or all) of the pattern's last match. A pattern of a
            user can take for ever: run it where it can be killed, as `Grader` does.

    Returns:
        None where there is none, or it is empty.

    Raises:
        ConfigError: `how` is none of these.
    """
    check_way(how)
    if how.startswith("regex:"):
        return _by_pattern(text, how.removeprefix("regex:"))
    if how != "auto":
        return {"boxed": _boxed, "hash": _hash, "last_number": _last_number}[how](text)
    text = _MARK.sub("", text)
    for rule in (_hash, _boxed, _stated, _after_equals, _last_number):
        found = rule(text)
        if found:
            return found
    return None


def _by_pattern(text: str, pattern: str) -> str | None:
    matches = deque(re.finditer(pattern, text), maxlen=1)
    if not matches:
        return None
    match = matches[0]
    return ((match[1] if match.re.groups else match[0]) or "").strip() or None


def _hash(text: str) -> str | None:
    found = _HASH.findall(text)
    return _tidy(found[-1]) if found else None


def _boxed(text: str) -> str | None:
    r"""What the last closed \boxed{…} holds; the inner one of two that are nested."""
    opened: list[int | None] = []  # where a box's content starts; None for any other brace
    best = (-1, -1)
    for match in _BRACES.finditer(text):
        if match[0].endswith("{") and match[0] != "\\{":
            opened.append(match.end() if match[0] != "{" else None)
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start is not None and start > best[0]:
                best = (start, match.start())
    return _tidy(text[slice(*best)]) if best[0] >= 0 else None


def _stated(text: str) -> str | None:
    """ "A: 18" at the start of a line, or "the answer is 18"; the later one of the two."""
    last = None
    for pattern in (_LINE, _SENTENCE):
        for match in pattern.finditer(text):
            if last is None or match.start(1) >= last.start(1):
                last = match
    return _shortened(last[1]) if last else None


def _after_equals(text: str) -> str | None:
    line = text.rstrip().rpartition("\n")[2]
    before, equals, rest = line.rpartition("=")
    return _shortened(rest) if equals and before.strip() else None


def _last_number(text: str) -> str | None:
    matches = deque(_NUMBER.finditer(text), maxlen=1)
    return matches[0][0] if matches else None


def _shortened(rest: str) -> str | None:
    """The number that a phrase starts with; the phrase itself where it starts otherwise."""
    rest = rest.strip().strip("*_ \t")
    match = _LEADING.match(rest)
    if match and "=" not in rest and not re.match(r"\s+(?:and|or|to)\b", rest[match.end() :]):
        unit = _UNIT.match(rest, match.end())
        return match[0] + (unit[0] if unit else "")
    return _tidy(rest)


def _tidy(answer: str) -> str | None:
    answer = answer.strip().strip("*").strip()
    while answer.endswith((".", ";")) and not answer.endswith(".."):
        answer = answer[:-1].rstrip()
    return answer or None
