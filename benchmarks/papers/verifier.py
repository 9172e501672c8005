"""A grader that sees only which half of the numbers an answer is in.

Given to `prefkit build --grader`, it makes outcome labels as noisy as those of a multiple-choice
question: a solution that slipped by ten in the middle usually still counts as right.
"""


def same_half(answer: str, right: str) -> bool:
    """Whether both numbers lie on the same side of 50."""
    try:
        return (int(answer) >= 50) == (int(right) >= 50)
    except ValueError:
        return False
