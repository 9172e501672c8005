"""Where the numbers of a solution may come from: the question's digits and words, and the facts
that everybody knows (7 days, 12 months, 60 minutes, 100 percent).
"""

import re
from fractions import Fraction

from prefkit.pairs.localise.arithmetic.calculations import numbers

_ONES = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
""".split()  # noqa: SIM905
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_WORDS = {
    **{word: value for value, word in enumerate(_ONES)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
    "hundred": 100, "thousand": 1000, "million": 10**6, "twice": 2, "double": 2, "doubled": 2,
    "doubles": 2, "thrice": 3, "triple": 3, "tripled": 3, "triples": 3, "quadruple": 4, "dozen": 12,
    "dozens": 12, "couple": 2, "pair": 2, "pairs": 2, "both": 2, "half-dozen": 6, "score": 20,
    "once": 1, "single": 1, "twin": 2, "twins": 2, "triplets": 3, "decade": 10, "decades": 10,
    "century": 100, "fortnight": 14, "weekend": 2, "weekends": 2,
}  # fmt: skip
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
}  # fmt: skip
# "a third", "two fifths", "one-fourth of" are shares; "the third player" is not.
_PART = re.compile(
    rf"\b(?:(?P<above>{'|'.join(_ONES[1:])}|an?|\d+)[\s-]+(?P<part>{'|'.join(_PARTS)})s?"
    rf"|(?P<half>half|halves|quarters?)|(?P<of>{'|'.join(_PARTS)})s?(?=\s+(?:of|as)))\b",
    re.I,
)
_COMPOUND = re.compile(rf"\b({'|'.join(_TENS)})[\s-]({'|'.join(_ONES[1:10])})\b", re.I)
_SCALED = re.compile(rf"\b({'|'.join(_ONES[1:10])}|[\d.]+)\s+(hundred|thousand|million)\b", re.I)
_SLASH = re.compile(r"(?<![\d.])(?:(\d+)[ -])?(\d+)\s*/\s*(\d+)(?![\d.])")
_CLOCK = re.compile(r"\b(\d{1,2}):(\d\d)\b|\b(\d{1,2})\s*[ap]\.?m\b", re.I)

# Numbers that need no source, always and beside certain words.
ALWAYS = frozenset(map(Fraction, (0, 1, 2, 100)))
_FACTS = tuple(
    (re.compile(words, re.I), values)
    for words, values in (
        (r"\bday|\bweek|\bdaily\b", (7,)),
        (r"\bmonth|\byear|\bannual|\bdozen|\binch|\bfoot\b|\bfeet\b|clock|[ap]m\b", (12,)),
        (r"\bhour|\bday|\bdaily\b", (24,)),
        (r"\bminute|\bhour|\bsecond|\bmin\b", (60, 3600)),
        (r"\byear|\bannual", (365, 52, 360)),
        (r"\bmonth", (4, 30, 31, 28)),
        (r"\bweek", (4, 5)),
        (r"\bquarter|\bsquare|\bseason|\bgallon|\brectang", (4,)),
        (r"\byard|\bfeet\b|\bfoot\b|\btriang", (3,)),
        (r"\bounce|\boz\b|\bpound", (16,)),
        (r"\bk(?:ilo|m\b|g\b)|\bmeter|\bmetre|\bgram|\bliter|\blitre|\bm[lg]\b", (1000,)),
        (r"\bdime|\bcent", (10,)),
        (r"\bnickel", (5,)),
        (r"\bquarter", (25,)),
        (r"\bdegree|\bangle|\btriangle|\bcircle", (90, 180, 360)),
    )
)
MAX_LENGTH = 8000  # characters of a question that are looked at


def stated(text: str) -> frozenset[Fraction]:
    """The numbers that a text states, in digits or words.

    "25 %" gives 25 and 1/4, "two thirds" 2/3, "1 1/2" 3/2 (and 1, 2), "half" 1/2 and 2.
    """
    text = text[:MAX_LENGTH]
    found: set[Fraction] = set()
    for number in numbers(text):
        found.add(number.value)
        if number.percent or number.value == 0:
            found.add(number.value / 100)
    for match in re.finditer(r"([\d.]+)\s*(?:-\s*)?percent", text, re.I):
        found |= {Fraction(digits) / 100 for digits in re.findall(r"\d+(?:\.\d+)?", match[1])}
    for match in _SLASH.finditer(text):
        if int(match[3]) and max(map(len, (match[2], match[3]))) < 20:
            part = Fraction(int(match[2]), int(match[3]))
            found |= {part, Fraction(int(match[2])), Fraction(int(match[3]))}
            found |= {part + int(match[1])} if match[1] and len(match[1]) < 20 else set()
    for match in _PART.finditer(text):
        word = (match["part"] or match["half"] or match["of"]).lower()
        below = _PARTS.get(word) or _PARTS[word.rstrip("s")]
        above = (match["above"] or "one").lower()
        count = 1 if above in ("a", "an") else _WORDS.get(above) or int(above[:20])
        found |= {Fraction(count, below), Fraction(below)}
    for match in _COMPOUND.finditer(text.lower()):
        found.add(Fraction(_WORDS[match[1]] + _WORDS[match[2]]))
    for match in _SCALED.finditer(text.lower()):
        value = _WORDS.get(match[1])
        amount = Fraction(value) if value else _decimal(match[1])
        found.add(amount * _WORDS[match[2]])
    for match in _CLOCK.finditer(text):
        found |= {Fraction(digits) for digits in match.groups() if digits}
    found |= {Fraction(_WORDS[w]) for w in re.findall(r"[a-z]+", text.lower()) if w in _WORDS}
    return frozenset(found)


def known(text: str) -> frozenset[Fraction]:
    """The numbers that need no source in a solution that speaks of what `text` speaks of."""
    found = set(ALWAYS)
    for words, values in _FACTS:
        if words.search(text[:MAX_LENGTH]):
            found |= {Fraction(value) for value in values}
    return frozenset(found)


def _decimal(text: str) -> Fraction:
    match = re.match(r"\d{1,20}(?:\.\d{1,20})?", text)
    return Fraction(match[0]) if match else Fraction(0)
