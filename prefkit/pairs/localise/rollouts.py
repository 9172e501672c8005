"""The first wrong step as the model's own continuations show it.

From every prefix of a wrong solution several continuations are sampled. As long as some of them
still reach the right answer the prefix may be right; the first prefix from which none does ends
with the wrong step. Luck blurs this in two ways: the few continuations of a right prefix may all
fail, and after a wrong step a second mistake may make good the first. So a continuation whose own
arithmetic is false does not count (unless no other is right), and the counts of all prefixes are
read together: successes have one rate up to the wrong step and a lower one after it, and the step
is the one that makes the counts most likely. With a lower rate of 0 and a higher one that is not
small this is the first prefix without a success. A continuation whose answer stays undecided is
neither: it is no try.
"""

import math
from collections.abc import Callable, Generator, Sequence

from prefkit.pairs.engines.base import Completion, Request
from prefkit.pairs.localise.arithmetic.calculations import first_false
from prefkit.pairs.localise.verdict import Verdict


def first_hopeless(
    steps: Sequence[str],
    request: Callable[[list[str], int], Request],
    succeed: Callable[[list[str]], Sequence[bool | None]],
    continuations: int = 8,
) -> Generator[list[Request], list[Completion], Verdict]:
    """Finds the step after which continuations stop to succeed.

    Args:
        steps: of a solution whose answer is wrong, each with the break that ends it.
        request: (prefix steps, number from 0) → a request to continue them to the end.
        succeed: whole solutions (prefix and continuation) → whether each one's answer is right;
            None = undecided.
        continuations: sampled from each prefix.

    Yields:
        One list: all continuations of all prefixes, from no step to all steps but the last; the
        whole solution needs none, it is known to be wrong.

    Returns:
        step None where there is no step, or no continuation of any prefix succeeds: then the
        question is too hard for the model, and its failures say nothing about a step.
    """
    if not steps:
        return Verdict(None, "there is no step")
    prefixes = [list(steps[:length]) for length in range(len(steps))]
    completions = yield [request(prefix, n) for prefix in prefixes for n in range(continuations)]
    whole = [
        "".join(prefix) + completions[place * continuations + n].text
        for place, prefix in enumerate(prefixes)
        for n in range(continuations)
    ]
    right = list(succeed(whole))
    clean = [
        bool(is_right) and first_false(completion.text.split("\n")).step is None
        for is_right, completion in zip(right, completions, strict=True)
    ]
    counted = clean if any(clean) else [bool(is_right) for is_right in right]
    parts = [
        slice(place * continuations, (place + 1) * continuations) for place in range(len(prefixes))
    ]
    wins = [sum(counted[part]) for part in parts]
    tries = [continuations - right[part].count(None) for part in parts]
    if not any(wins):
        return Verdict(None, f"none of {len(whole)} continuations is right")
    return Verdict(last_with_hope(wins, tries), _in_words(wins, tries, continuations))


def _in_words(wins: Sequence[int], tries: Sequence[int], continuations: int) -> str:
    trust = "likely" if share_of_best(wins, tries) > 0.5 else "a guess"
    counts = " ".join(
        f"{won}" if tried == continuations else f"{won}/{tried}"
        for won, tried in zip(wins, tries, strict=True)
    )
    return f"right continuations of {continuations} after 0, 1, … steps: {counts} ({trust})"


def last_with_hope(wins: Sequence[int], tries: Sequence[int]) -> int:
    """The length of the longest prefix before successes drop, 0 ≤ length < len(wins).

    Args:
        wins: successes from the prefixes of 0, 1, … steps; the whole solution's 0 is added here,
            of as many tries as a prefix had at most.
        tries: decided continuations from each prefix.

    Returns:
        The length k that maximises the likelihood of two binomial rates, one for prefixes of up to
        k steps and a lower one for longer ones; the shortest of equals.
    """
    likelihoods = _likelihoods(wins, tries)
    return likelihoods.index(max(likelihoods))


def share_of_best(wins: Sequence[int], tries: Sequence[int]) -> float:
    """How likely the step of `last_with_hope` is beside all others, in (0, 1]: its likelihood
    divided by the sum of all. One lucky continuation at a hard question gives little.

    Args:
        wins, tries: see `last_with_hope`; one of `wins` is above 0.
    """
    likelihoods = _likelihoods(wins, tries)
    best = max(likelihoods)
    return 1 / sum(math.exp(value - best) for value in likelihoods)


def _likelihoods(wins: Sequence[int], tries: Sequence[int]) -> list[float]:
    """The logarithm of the likelihood of each length, −∞ where the rate does not fall there."""
    won, tried = [*wins, 0], [*tries, max(tries)]
    found = []
    for length in range(len(wins)):
        sides = [
            (sum(won[part]), sum(tried[part]))
            for part in (slice(length + 1), slice(length + 1, None))
        ]
        rates = [right / max(1, count) for right, count in sides]
        log = sum(_log(*side, rate) for side, rate in zip(sides, rates, strict=True))
        found.append(log if rates[0] > rates[1] else -math.inf)
    return found


def _log(won: int, tried: int, rate: float) -> float:
    lost = tried - won
    return (won * math.log(rate) if won else 0.0) + (lost * math.log(1 - rate) if lost else 0.0)
