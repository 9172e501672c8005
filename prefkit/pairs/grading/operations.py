r"""Words and signs behind a number that calculate with it: 5 squared, 5 divided by 2, 5 and a half.

A unit may be left out of an answer, these may not: 5 squared is not 5.
"""

import re

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
_WORDS = re.compile(
    rf"[ \t]*(?:(?:{_DIRECT})(?![A-Za-z])"
    rf"|(?:[A-Za-z²³°%.]+[ \t]+){{0,2}}?(?:{_ANYWHERE})(?![A-Za-z]))"
)
_STARTS_WITH_NUMBER = re.compile(r"[-+(]*[$€£]?(?:\d[\d,. ]*|\([^()]*\))(?:/\d+)?(?:\s*%)?")
_SIGNS = re.compile(r"[(\[!]|[ \t]*[\^*/√\\+×÷·⋅<>≤≥≠]|[-−–](?=\w)|[ \t]+[-−–][ \t]*(?=[\d$(\\])")


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
    return bool(_WORDS.match(rest))


def sign_calculates(rest: str) -> bool:
    """Whether a sign behind a number does: of a power, a factorial, a product, an inequality."""
    return bool(_SIGNS.match(rest))
