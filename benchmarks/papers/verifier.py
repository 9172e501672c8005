"""What judges solutions while the data are made: programs named to `prefkit build` by import path.

`first_wrong` is the localiser: it reads lines, not intentions. `same_half` is a grader that sees
little: it makes outcome labels as noisy as those of a multiple-choice question, because a solution
that slipped by ten in the middle usually still counts as right.
"""

import re
from collections.abc import Sequence

_STEP = re.compile(r"(\d\d)([+-]\d)=(\d\d)\n?")


def first_wrong(question: str, steps: Sequence[str], solution: str | None) -> int | None:
    """The 0-based first step whose sum is wrong or that does not go on from the last result.

    Whether the steps use up the question's terms is not looked at: the answer tells that.

    Args:
        question: begins with the start value.
        steps: the line that tells the way, then one operation each.
        solution: not used.
    """
    last = question[:2]
    for place, step in enumerate(steps):
        if place == 0 and step.strip() in ("<", ">"):
            continue
        match = _STEP.fullmatch(step)
        if match is None or match[1] != last or int(match[1]) + int(match[2]) != int(match[3]):
            return place
        last = match[3]
    return None


def same_half(answer: str, right: str) -> bool:
    """Whether both numbers lie on the same side of 50."""
    try:
        return (int(answer) >= 50) == (int(right) >= 50)
    except ValueError:
        return False
