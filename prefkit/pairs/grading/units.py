r"""A number with its unit: 18, $18, 18 dollars, 1.5 hours, 50 %; and the words behind a number.

Units of one kind are converted to a basic one; a word that is no known unit ("18 apples") says
nothing and is left out. What is composed (m/s, m^3) or has an opposite (am, north) is not left out
beside another one. Two units of one kind are added: 1 hour 30 minutes are 90 minutes. Words that
multiply (5 million, 2 dozen, 7 tenths, 1.5k) are part of the number. Words and signs that calculate
with it (5 squared, 5 divided by 2, 5 and a half) are none of a unit: 5 squared is not 5.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from prefkit.pairs.grading.rationals import value_of

_TABLE: dict[str, dict[str, int | Fraction]] = {
    "money $": {"dollar usd": 1, "cent ¢": Fraction(1, 100)},
    "money €": {"euro eur": 1},
    "money £": {"pound gbp": 1},
    "length": {
        "m meter metre": 1, "cm centimeter centimetre": Fraction(1, 100), "km kilometer kilometre":
        1000, "mm millimeter millimetre": Fraction(1, 1000), "inch inches in": Fraction(254, 10000),
        "foot feet ft": Fraction(3048, 10000), "yard yd": Fraction(9144, 10000),
        "mile mi": Fraction(1609344, 1000),
    },
    "mass": {
        "kg kilogram": 1, "g gram": Fraction(1, 1000), "mg milligram": Fraction(1, 10**6),
        "lb lbs": Fraction(45359237, 10**8), "oz ounce": Fraction(45359237, 16 * 10**8),
        "ton tonne": 1000,
    },
    "time": {
        "second sec s": 1, "minute min": 60, "hour hr h": 3600, "day": 86400, "week": 604800,
        "month": 2629746, "year yr": 31556952,
    },
    "volume": {"liter litre l": 1, "ml milliliter millilitre": Fraction(1, 1000),
               "gallon": Fraction(3785411784, 10**9)},
    "angle": {"degree deg": 1},
    "speed": {"mph": 1}, "speed metric": {"km/h kmh kph": 1},
}  # fmt: skip
_UNITS = {
    word: (kind, Fraction(factor))
    for kind, units in _TABLE.items()
    for words, factor in units.items()
    for word in words.split()
}
_SIGNS = {"$": "money $", "€": "money €", "£": "money £"}
_CODES = {"USD": "$", "EUR": "€", "GBP": "£"}
_POWER = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
PERCENT = ("%", "percent", "percentage", "per cent", "pct")
_OPPOSITES = {
    *("am", "pm", "ad", "bc", "north", "south", "east", "west", "left", "right", "up", "down"),
    *("radian", "radians"),
}
_DEGREES = {"fahrenheit", "f", "celsius", "c"}
_POWER_BEHIND = {"squared": 2, "cubed": 3}

_UNIT = re.compile(
    r"(?P<number>[-+(]*[\d.].*?)\s*"
    r"(?P<unit>%|percentage|percent|per cent|pct|¢"
    r"|(?:(?:square|sq\.?|cubic|cu\.?)\s+)?[A-Za-z]+(?:/[A-Za-z]+)?"
    r"(?:\s*\^\s*\{?[23]\}?)?(?:\s+[A-Za-z/]+){0,4})?",
    re.DOTALL,
)
_ONE = r"(\d+(?:\.\d+)?|\d{1,3}(?:,\d{3})+)[ \t]*([A-Za-z]+)\.?"
_ADDED = re.compile(rf"{_ONE}(?:(?:,?[ \t]+and[ \t]+|,?[ \t]*){_ONE}){{1,3}}")


@dataclass(frozen=True)
class Quantity:
    """A number as written, the kind of its unit (None = none known), its factor to the basic one.

    `percent` tells whether a percent sign (or the word) follows; `scale` is what "million" and
    the like multiply the number by; `larger` has the factors of the other units of a sum of units,
    whose number is its value in the smallest one; `telling` is the unit where it is composed or
    has an opposite, else "".
    """

    number: str
    kind: str | None = None
    factor: Fraction = Fraction(1)
    percent: bool = False
    scale: Fraction = Fraction(1)
    larger: tuple[Fraction, ...] = ()
    telling: str = ""

    @property
    def value(self) -> Fraction | None:
        """The number times its scale, in the unit it was written with; None = it has no value."""
        found = value_of(self.number)
        return None if found is None else found * self.scale


def quantity(text: str) -> Quantity | None:
    """A number, a fraction or an expression of numbers, with or without unit; else None."""
    text = re.sub(r"^(-?)\s*([$€£])\s*(-?)", r"\2\1\3", text.strip())
    text = re.sub(r"^(USD|EUR|GBP)\s*(?=[-\d.])", lambda match: _CODES[match[1]], text)
    if text.startswith(("(", "[", "{")) and "," in text:
        return None  # (1,234) is a tuple
    if both := added(text):
        return both
    kind = _SIGNS.get(text[:1])
    text = spelt_out(text[1:].strip() if kind else text)
    if value_of(text.rstrip("%").strip()) is not None and not text.endswith("%"):
        return Quantity(_mixed(text), kind)
    match = _UNIT.fullmatch(text)
    if match is None or value_of(_mixed(match["number"])) is None:
        return None
    if match["unit"] and word_calculates(" " + match["unit"]):
        return None
    number = _mixed(match["number"])
    scale, unit = scale_of((match["unit"] or "").strip().casefold())
    if unit in PERCENT:
        return Quantity(number, percent=True, scale=scale)
    if not unit:
        return Quantity(number, kind, scale=scale)
    is_apart = match.end("number") < match.start("unit")
    if re.fullmatch(r"[a-z](?:\^.*)?", unit) and unit[: 1 if is_apart else None] not in _UNITS:
        return None  # "5x" is a formula, and 5m^2 may be one
    found, factor = _known(unit)
    is_telling = found is None and (re.search(r"[/^]", unit) or _OPPOSITES & set(unit.split()))
    telling = unit if is_telling else ""
    return Quantity(number, found or kind, factor, scale=scale, telling=telling)


def added(text: str) -> Quantity | None:
    """Two or more numbers with known units of one kind, from the largest: 5 feet 3 inches."""
    if not _ADDED.fullmatch(text):
        return None
    total, kinds, factors = Fraction(0), list[str | None](), list[Fraction]()
    for number, word in re.findall(_ONE, text):
        is_minute = word == "m" and kinds == ["time"]
        kind, factor = _known("min" if is_minute else word.casefold())
        kinds.append(kind)
        factors.append(factor)
        total += Fraction(number.replace(",", "")) * factor
    if kinds[0] is None or len(set(kinds)) > 1 or factors != sorted(set(factors), reverse=True):
        return None
    return Quantity(str(total / factors[-1]), kinds[0], factors[-1], larger=tuple(factors[:-1]))


def added_at(text: str) -> str | None:
    """The sum of units that a text begins with, as written; None = it begins otherwise."""
    match = _ADDED.match(text)
    return match[0] if match and added(match[0]) else None


def is_unit_letter(word: str) -> bool:
    """Whether a word of one or two letters is a known unit: m, kg."""
    return word.casefold() in _UNITS


def is_unit(words: str) -> bool:
    """Whether words name a known unit, a percentage, or how many (million)."""
    words = words.strip().lstrip("\\").casefold()
    if words in (*PERCENT, "degrees") or scale_of(words)[0] != 1:
        return True
    last = words.split()[-1] if words else ""
    return len(last) > 1 and last != "in" and bool(_UNITS.get(last) or _UNITS.get(last.rstrip("s")))


def _mixed(text: str) -> str:
    """ "1 1/2" as a sum; 1 000 000 without its spaces."""
    text = re.sub(r"(?<=\d)\s(?=\d{3}(?!\d))", "", text.strip())
    return re.sub(r"^(-?)(\d+)\s+(\d+/\d+)$", r"\1(\2+\3)", text)


def _known(unit: str) -> tuple[str | None, Fraction]:
    words = re.sub(r"\s+\^", "^", unit).split()
    power = _POWER.get(words[0].rstrip("."), 1)
    words = words[1:] if power > 1 else words
    if power == 1 and words[1:2] and words[1] in _POWER_BEHIND:
        power = _POWER_BEHIND[words[1]]
    match = re.fullmatch(r"(.*?)\s*\^\s*\{?([23])\}?", " ".join(words[:1]))
    word, power = (match[1], int(match[2])) if match else (words[0] if words else "", power)
    found = _UNITS.get(word) or _UNITS.get(word.rstrip("s")) or _UNITS.get(word.removesuffix("es"))
    if found is None or (len(words) > 1 and words[1] in ("per", "an", "a", "each", "every")):
        return None, Fraction(1)
    kind, factor = found
    if kind == "angle" and len(words) > 1 and words[1] in _DEGREES:
        kind = f"temperature {words[1][0]}"
    return (kind if power == 1 else f"{kind} ^{power}"), factor**power


_MAGNITUDES: dict[str, int | Fraction] = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "tenth": Fraction(1, 10), "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000), "millionth": Fraction(1, 10**6), "mln": 10**6, "bn": 10**9,
}  # fmt: skip
# Only right behind a digit: "1.5k" is 1500, "5 k" a formula; "5 m" are metres, "5M" are million.
_LETTERS = {"k": 1000, "K": 1000, "M": 10**6, "B": 10**9}
_LETTER = re.compile(r"(?<=\d)([kKMB])(?![A-Za-z/^\d])")
_NAMES = {value: name for name, value in _MAGNITUDES.items() if len(name) > 3}


def spelt_out(text: str) -> str:
    """A number's letter as a word: "$1.5k" as "$1.5 thousand"."""
    return _LETTER.sub(lambda match: f" {_NAMES[_LETTERS[match[1]]]}", text)


def _magnitude(word: str) -> int | Fraction | None:
    return _MAGNITUDES.get(word) or _MAGNITUDES.get(word.removesuffix("s"))


def scale_of(unit: str) -> tuple[Fraction, str]:
    """(what the leading words of a unit multiply by, the unit without them).

    Args:
        unit: what stands after a number, in lower case: "hundred thousand dollars".

    Returns:
        (1, unit) where no such word leads; "hundred thousand dollars" gives (100000, "dollars").
    """
    scale, words = Fraction(1), unit.split()
    while words and (found := _magnitude(words[0])):
        scale *= found
        words = words[1:]
    return scale, " ".join(words)


_FRACTION = r"(?:half|halves|quarters?|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?)"
_DIRECT = "|".join(  # behind the number itself: "5 cm squared" is a unit
    [
        r"squared|cubed|factorial|remainder|mod(?:ulo)?|out[ \t]+of",
        r"[xX](?=[ \t]*\d)|(?:of|in|over|less)(?=[ \t]+[$\d(\\])|over(?=[ \t]+[b-z]\b)",
        rf"[-–]?{_FRACTION}",
    ]
)
_ANYWHERE = "|".join(  # behind its unit as well
    [
        r"times(?=[ \t]+\S)|divided|multiplied|raised|plus|minus|to[ \t]+the[ \t]+power",
        r"(?:more|less|fewer)[ \t]+than|(?:by|to)(?=[ \t]+[$\d(\\])",
        r"or[ \t]+(?:more|less|fewer)|below[ \t]+zero|at[ \t]+(?:most|least)",
        rf"and[ \t]+{_FRACTION}|(?:an?|one|two|three)[ \t-]+{_FRACTION}",
    ]
)
_CALCULATING = re.compile(
    rf"[ \t]*(?:(?:{_DIRECT})(?![A-Za-z])"
    rf"|(?:[A-Za-z²³°%.]+[ \t]+){{0,2}}?(?:{_ANYWHERE})(?![A-Za-z]))"
)
_STARTS_WITH_NUMBER = re.compile(r"[-+(]*[$€£]?(?:\d[\d,. ]*|\([^()]*\))(?:/\d+)?(?:\s*%)?")
_CALCULATING_SIGNS = re.compile(
    r"[(\[!]|[ \t]*[\^*/√\\+×÷·⋅<>≤≥≠]|[-−–](?=\w)|[ \t]+[-−–][ \t]*(?=[\d$(\\])"
)


def calculates(answer: str) -> bool:
    """Whether an answer begins with a number and a word calculates with it: 5 divided by 2."""
    number = _STARTS_WITH_NUMBER.match(answer)
    return number is not None and word_calculates(" " + answer[number.end() :])


def word_calculates(rest: str) -> bool:
    """Whether a word in what stands behind a number calculates with it.

    Args:
        rest: begins behind the number; two words, its unit, may stand before the one that
            calculates, but no full stop.
    """
    return bool(_CALCULATING.match(rest))


def sign_calculates(rest: str) -> bool:
    """Whether a sign behind a number does: of a power, a factorial, a product, an inequality."""
    return bool(_CALCULATING_SIGNS.match(rest))
