"""All step pairs of a question: its wrong solutions and what came of them, as one tree.

A place of the tree is a text of right steps after which a wrong one was found. The continuations
that are sampled there to put it right come out right or wrong. The right ones are the right steps
of the place. A wrong one is only known to be wrong somewhere: it is read like a solution, and its
first wrong step, here or further down, is a mistake like the first one, put right in its place.
Every place pairs each of its wrong steps with each of its right ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from prefkit.pairs.asking import Asking, together
from prefkit.pairs.pipelines.context import Context
from prefkit.pairs.pipelines.mistakes import (
    Mistake,
    Steps,
    locate,
    put_right,
    right_steps,
    steps_after,
)
from prefkit.pairs.pipelines.outcome import Attempt, Outcome
from prefkit.pairs.pipelines.rows import Row, step_row
from prefkit.pairs.questions import Question


@dataclass
class _Place:
    """A text of right steps, and what may follow.

    Attributes:
        first: the mistake that was put right here.
        wrong: mistakes whose first wrong steps, all different, follow here; `first` is one.
        right: number of the continuation and right steps, whose first ones are all different.
    """

    first: Mistake
    wrong: list[Mistake] = field(default_factory=list)
    right: list[tuple[int, Steps]] = field(default_factory=list)


def step_tree(
    question: Question, context: Context, outcome: Outcome, solutions: Sequence[Attempt]
) -> Asking[list[Row]]:
    """Locates and puts right, wave by wave, at most `mistakes_per_question` mistakes in all.

    Args:
        solutions: wrong ones, different in text.
    """
    left, waiting = context.options.mistakes_per_question, list(solutions)
    assert left is not None
    places: dict[str, _Place] = {}
    begun = {attempt.number: 0 for attempt in waiting}  # steps before are known to be right
    texts = {attempt.text.strip() for attempt in waiting}
    while waiting and left:
        wave, waiting = waiting[:left], waiting[left:]
        left -= len(wave)
        found = yield from together(
            [locate(question, context, outcome, attempt) for attempt in wave]
        )
        new = [
            place
            for mistake in found
            if mistake is not None
            and (place := _enter(places, mistake, begun[mistake.attempt.number], outcome))
        ]
        lists = yield from together([_fill(question, context, outcome, place) for place in new])
        # In turn: each place is followed before any is followed twice.
        for attempt in (one for turn in zip_longest(*lists) for one in turn if one is not None):
            if attempt.text.strip() in texts:
                outcome.drops["rectifications: the same text as another"] += 1
                continue
            texts.add(attempt.text.strip())
            waiting.append(attempt)
        for place, some in zip(new, lists, strict=True):
            begun |= {one.number: place.first.index for one in some}
    outcome.drops["mistakes: beyond mistakes_per_question"] += len(waiting)
    return [row for place in places.values() for row in _rows(question, place, outcome)]


def _enter(
    places: dict[str, _Place], mistake: Mistake, known: int, outcome: Outcome
) -> _Place | None:
    """Adds a mistake to the place that it follows; returns the place if it is a new one."""
    if mistake.index < known:  # what it continues was right up to there, by the same reader
        outcome.drops["mistakes: in steps that were read as right before"] += 1
        return None
    place = places.get(mistake.prefix)
    if place is None:
        place = places[mistake.prefix] = _Place(mistake, [mistake])
        return place
    if mistake.rejected[0].strip() in _steps_of(place):
        outcome.drops["mistakes: a step seen before"] += 1
    else:
        place.wrong.append(mistake)
    return None


def _fill(
    question: Question, context: Context, outcome: Outcome, place: _Place
) -> Asking[list[Attempt]]:
    """Samples at a new place: its right steps, and the wrong solutions that are to be read."""
    continued = yield from put_right(question, context, outcome, place.first)
    place.right = yield from right_steps(question, context, outcome, place.first, continued)
    if not place.right:
        outcome.drops["mistakes: never put right"] += 1
    wrong = []
    for one in continued:
        if one.right or not one.decided:
            continue
        steps = steps_after(place.first, one)
        if steps is None:
            outcome.drops["rectifications: their steps do not line up"] += 1
        elif steps[0].strip() in _steps_of(place):
            outcome.drops["rectifications: wrong by a step seen before"] += 1
        else:
            wrong.append(one)
    return wrong


def _steps_of(place: _Place) -> set[str]:
    """The wrong steps that follow a place."""
    return {mistake.rejected[0].strip() for mistake in place.wrong}


def _rows(question: Question, place: _Place, outcome: Outcome) -> list[Row]:
    """Each wrong step with each right one. A step that came out right once and is called wrong in
    another solution is taken for wrong, as it is where the first mistake is repeated."""
    wrong, owner = _steps_of(place), place.first.attempt.number
    right = [(number, steps) for number, steps in place.right if steps[0].strip() not in wrong]
    outcome.drops["rectifications: a step that is called wrong"] += len(place.right) - len(right)
    return [
        step_pair(
            question,
            mistake,
            steps,
            f"{mistake.attempt.number}-{number}"
            if mistake is place.first
            else f"{mistake.attempt.number}-{owner}.{number}",
        )
        for mistake in place.wrong
        for number, steps in right
    ]


def step_pair(question: Question, mistake: Mistake, chosen: Steps, name: str) -> Row:
    """The row of a wrong step and a right one after the same prefix."""
    return step_row(
        question,
        name=name,
        prefix=mistake.prefix,
        prefix_steps=mistake.attempt.steps[: mistake.index],
        chosen=chosen,
        rejected=mistake.rejected,
    )
