r"""Answers with parts: sets, lists, tuples, intervals, unions, matrices, and ± as two values."""

import re
from dataclasses import dataclass

_OPEN, _CLOSE = "([{", ")]}"
_MATRIX = re.compile(r"\\begin\{([bp]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_THOUSANDS = re.compile(r"[-+]?[$€£]?[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?(?:\s*[A-Za-z% ]*)")
_BOUND = r"[^<>=]+?"
_LESS, _LESS_EQUAL = r"<|\\lt(?![A-Za-z])", r"\\le(?![A-Za-z])"
_CHAIN = re.compile(
    rf"({_BOUND})\s*({_LESS}|{_LESS_EQUAL})\s*([A-Za-z])\s*({_LESS}|{_LESS_EQUAL})\s*({_BOUND})"
)
_GREATER = r">|\\gt(?![A-Za-z])|\\ge(?![A-Za-z])"
_SINGLE = re.compile(rf"({_BOUND})\s*({_LESS}|{_LESS_EQUAL}|{_GREATER})\s*({_BOUND})")


@dataclass(frozen=True)
class Items:
    """Parts of a "set", "list" (bare), "tuple" or "union" (of intervals)."""

    kind: str
    parts: list[str]


@dataclass(frozen=True)
class Interval:
    low: str
    high: str
    open: tuple[bool, bool]


@dataclass(frozen=True)
class Matrix:
    rows: list[list[str]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells of each row."""
        return tuple(len(row) for row in self.rows)

    def flat(self) -> list[str]:
        return [cell for row in self.rows for cell in row]


Structure = Items | Interval | Matrix


def structure(text: str) -> Structure | None:
    """The parts of an answer in normal form; None where it is one thing without parts."""
    text = text.strip()
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        rows = re.split(r"\\\\", matrix[2].strip().removesuffix("\\\\"))
        return Matrix([[cell.strip() for cell in row.split("&")] for row in rows])
    if re.search(r"\\cup(?![A-Za-z])", text):
        parts = [part.strip() for part in re.split(r"\\cup(?![A-Za-z])", text)]
        return Items("union", parts)
    return _inequality(text) or _bracketed(text) or _bare(text)


def bare_list(text: str) -> list[str]:
    """The parts of "1,234" read as a list, which is a number as well; [] where it has no comma."""
    parts = split(text) if "," in text else []
    return parts if all(parts) else []


def split(text: str) -> list[str]:
    """The parts between the commas (or semicolons) that stand in no bracket."""
    parts, depth, start = [], 0, 0
    separator = ";" if ";" in text else ","
    for place, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if character == separator and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()]


def _bracketed(text: str) -> Structure | None:
    """A set, a tuple, an interval: one bracket around everything."""
    if text.startswith("\\{") and text.endswith("\\}"):
        return _expanded("set", split(text[2:-2]))
    if len(text) < 2 or text[0] not in _OPEN or text[-1] not in _CLOSE or not _encloses(text):
        return None
    parts = split(text[1:-1])
    if text[0] == "{" and text[-1] == "}":
        return _expanded("set", parts)
    if text[0] == text[-2:-1] == "[" or (text.startswith("[[") and text.endswith("]]")):
        inner = [_bracketed(part) for part in parts]
        rows = [part.parts for part in inner if isinstance(part, Items)]
        return Matrix(rows) if len(rows) == len(parts) else None
    if len(parts) == 2 and (text[0] == "[" or text[-1] == "]" or "\\infty" in text):
        return Interval(_end(parts[0]), _end(parts[1]), (text[0] == "(", text[-1] == ")"))
    return Items("tuple", parts) if len(parts) > 1 else None


def _end(bound: str) -> str:
    return re.sub(r"^\+\s*", "", re.sub(r"\s+", " ", bound))


def _encloses(text: str) -> bool:
    """Whether the first bracket is closed by the last one ("(1+2)(3)" is not enclosed)."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return place == len(text) - 1
    return False


def _inequality(text: str) -> Structure | None:
    r"""1 \le x < 2, x > 3, 3 < x as intervals; None for any other inequality."""
    match = _CHAIN.fullmatch(text)
    if match:
        strict = [sign in ("<", "\\lt") for sign in (match[2], match[4])]
        return Interval(match[1].strip(), match[5].strip(), (strict[0], strict[1]))
    match = _SINGLE.fullmatch(text)
    if match is None:
        return None
    left, sign, right = match[1].strip(), match[2], match[3].strip()
    if re.fullmatch(r"[A-Za-z]", right) and not re.fullmatch(r"[A-Za-z]", left):
        left, right = right, left
        sign = sign.translate(str.maketrans("<>", "><"))
        sign = {"\\le": "\\ge", "\\ge": "\\le", "\\lt": "\\gt", "\\gt": "\\lt"}.get(sign, sign)
    if not re.fullmatch(r"[A-Za-z]", left):
        return None
    is_open = sign in ("<", ">", "\\lt", "\\gt")
    if sign in ("<", "\\le", "\\lt"):
        return Interval("-\\infty", right, (True, is_open))
    return Interval(right, "\\infty", (is_open, True))


def _bare(text: str) -> Structure | None:
    """1, 3 or 1 and 3; ± as two values. A number with thousands separators is no list."""
    spaced = re.sub(r"\s+(?:and|or)\s+", ", ", text)
    spaced = re.sub(r",\s*,", ",", spaced)
    if _THOUSANDS.fullmatch(spaced):
        return None
    parts = split(spaced)
    if len(parts) > 1 and all(parts):
        return _expanded("list", parts)
    return _expanded("list", [text]) if "\\pm" in text else None


def _expanded(kind: str, parts: list[str]) -> Items:
    """With every ± (one a part) written as two parts, and "x = 1, x = 2" as 1, 2."""
    found: list[str] = []
    for part in parts:
        part = re.sub(r"^[A-Za-z](?:_\{?\w\}?)?\s*=\s*", "", part)
        if part.count("\\pm") == 1:
            for sign in "+-":
                found.append(re.sub(r"\\pm\s*", sign, part).strip().removeprefix("+"))
        else:
            found.append(part)
    return Items(kind, found)
