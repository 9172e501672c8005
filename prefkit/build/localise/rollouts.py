"""The first wrong step as the model's own continuations show it.

From every prefix of a wrong solution several continuations are sampled. As long as some of them
still reach the right answer the prefix may be right; the first prefix from which none does ends
with the wrong step. The question alone is tried too: where the model cannot solve it at all, a
hopeless prefix says nothing.
"""

from collections.abc import Callable, Generator, Sequence

from prefkit.build.engine import Completion, Request
from prefkit.build.localise.verdict import Verdict


def first_hopeless(
    steps: Sequence[str],
    request: Callable[[list[str], int], Request],
    succeed: Callable[[list[str]], Sequence[bool]],
    continuations: int = 8,
) -> Generator[list[Request], list[Completion], Verdict]:
    """Finds the first prefix from which no continuation succeeds.

    Args:
        steps: of a solution whose answer is wrong, each with the break that ends it.
        request: (prefix steps, number from 0) → a request to continue them to the end.
        succeed: whole solutions (prefix and continuation) → whether each one's answer is right.
        continuations: sampled from each prefix.

    Yields:
        One list: all continuations of all prefixes, from no step to all steps but the last; the
        whole solution needs none, it is known to be wrong.

    Returns:
        step None where there is no step, or no continuation of the bare question succeeds.
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
    for length in range(len(steps)):
        wins = sum(right[length * continuations : (length + 1) * continuations])
        if wins:
            before = wins
            continue
        if length == 0:
            return Verdict(None, f"none of {continuations} solutions of the question is right")
        return Verdict(
            length - 1,
            f"{before} of {continuations} continuations were right before the step, none after it "
            "(likely)",
        )
    return Verdict(
        len(steps) - 1, "continuations are right up to the last step, which ends it (likely)"
    )
