"""Words and letters that multiply a number: 5 million, 2 dozen, 7 tenths, 1.5k.

They say how much, so they are never left out as a unit may be: 5 million is not 5.
"""

import re
from fractions import Fraction

_WORDS: dict[str, int | Fraction] = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "tenth": Fraction(1, 10), "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000), "millionth": Fraction(1, 10**6), "mln": 10**6, "bn": 10**9,
}  # fmt: skip
# Only right behind a digit: "1.5k" is 1500, "5 k" a formula; "5 m" are metres, "5M" are million.
_LETTERS = {"k": 1000, "K": 1000, "M": 10**6, "B": 10**9}
_LETTER = re.compile(r"(?<=\d)([kKMB])(?![A-Za-z/^\d])")
_NAMES = {value: name for name, value in _WORDS.items() if len(name) > 3}


def spelt_out(text: str) -> str:
    """A number's letter as a word: "$1.5k" as "$1.5 thousand"."""
    return _LETTER.sub(lambda match: f" {_NAMES[_LETTERS[match[1]]]}", text)


def scale_of(unit: str) -> tuple[Fraction, str]:
    """(what the leading words of a unit multiply by, the unit without them).

    Args:
        unit: what stands after a number, in lower case: "hundred thousand dollars".

    Returns:
        (1, unit) where no such word leads; "hundred thousand dollars" gives (100000, "dollars").
    """
    scale, words = Fraction(1), unit.split()
    while words and (found := _WORDS.get(words[0]) or _WORDS.get(words[0].removesuffix("s"))):
        scale *= found
        words = words[1:]
    return scale, " ".join(words)
