r"""One spelling for answers that differ in nothing but typing.

LaTeX spacing and sizes go, `\dfrac12` becomes `\frac{1}{2}`, Unicode signs become ASCII or LaTeX,
`\text{even}` becomes `even`. What an answer *means* (units, sets, intervals) is not touched here.
"""

import re

_SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "²": "^2",
    "³": "^3", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "θ": r"\theta ",
    "\u00a0": " ", "\u202f": " ", "’": "'", "％": "%",
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_WRAPS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_DROPPED = re.compile(
    r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|displaystyle|limits)(?![A-Za-z])\.?|(?<!\\)\\[,;: ]|~"
)
_RENAMED = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne"),
    (re.compile(r"\\q?quad"), " "),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])|\\\{\s*\\\}|^\{\s*\}$"), r"\\emptyset"),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\s*\{\s*,\s*\}\s*"), ","),
    (re.compile(r"(?<!\\)\\!\s*"), ""),
    (re.compile(r"\\([%$#])"), r"\1"),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])"), " degrees"),
    (re.compile(r"_\{(\w+)\}"), r"_\1"),
    (re.compile(r"(?<=\d)[eE]([-+]?\d{1,3})(?!\w)"), r"*10^(\1)"),
    # A letter for the sign: 5 x 10, 1.5x10^6; 2x3 is left alone.
    (re.compile(r"(?<=\d)(?:\s*[xX]\s+|\s+[xX]\s*)(?=\d)|(?<=\d)[xX](?=10\s*\^)"), r"\\times "),
    (re.compile(r"√\s*(\d+|[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"√\s*\("), r"\\sqrt("),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\sqrt\s*(\d|[A-Za-z])(?![A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])(?:infinity|infty|oo)(?![A-Za-z])"), r"\\infty "),
)
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}"
)
_ESCAPED_TWICE = re.compile(
    r"(?<!\\)\\\\(?=(?:boxed|fbox|left|right|[dtc]?frac|sqrt|text|begin|end|pi|cdot|times|infty|l?dots"
    r"|[gln]eq?|pm|cup|cap|in)(?![A-Za-z]))"
)
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:(\d)\s*(\d)|(\d)\s*(\{)|(\{[^{}]*\})\s*(\d))")
# A fraction of plain digits needs no LaTeX; a whole number before it makes it a mixed number.
_PLAIN_FRACTION = re.compile(r"(-?)(\d+)?\s*\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}")
_BRACED = re.compile(r"(?<=(?<!\\)\{) +| +(?=\})")
_SPACES = re.compile(r"\s+")


def unescaped(text: str) -> str:
    r"""The text with `\\\\boxed` as `\\boxed`: LaTeX that was written to JSON once too often."""
    return _ESCAPED_TWICE.sub(lambda _: "\\", text) if "\\\\" in text else text


def normal(text: str) -> str:
    r"""The answer in its one spelling.

    Args:
        text: an answer; at most a few hundred characters (the caller's guard).

    Returns:
        Without `$…$`, \boxed, sizes, LaTeX spaces, the full stop at the end; spaces single.
    """
    text = _SIGN.sub(lambda match: _SIGNS[match[0]], unescaped(text.strip()))
    text = _unwrapped(text)
    text = _DROPPED.sub(" ", text)
    for pattern, name in _RENAMED:
        text = pattern.sub(name, text)
    text = _BRACED.sub("", _TEXT.sub(r" \1 ", text))
    text = _SHORT_FRACTION.sub(_long_fraction, text)
    text = _PLAIN_FRACTION.sub(_mixed, text)
    return _SPACES.sub(" ", text).strip().rstrip(".;").strip()


def _unwrapped(text: str) -> str:
    for _ in range(4):
        before = text
        text = text.strip().rstrip(".")
        boxed = re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", text, re.DOTALL)
        text = boxed[1] if boxed else text
        for opened, closed in _WRAPS:
            inner = text[len(opened) : len(text) - len(closed)]
            if len(text) > 2 * len(opened) and text.startswith(opened) and text.endswith(closed):
                text = inner if "$" not in inner else text
        text = text.strip().strip("*").strip()
        if text == before:
            break
    return text


def _long_fraction(match: re.Match[str]) -> str:
    if match[1]:
        return rf"\frac{{{match[1]}}}{{{match[2]}}}"
    if match[3]:
        return rf"\frac{{{match[3]}}}{{"
    return rf"\frac{match[5]}{{{match[6]}}}"


def _mixed(match: re.Match[str]) -> str:
    sign, whole, above, below = match.groups()
    if whole:
        return f"{sign}({whole}+{above}/{below})"
    return f"{sign}({above}/{below})"
