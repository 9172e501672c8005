"""Questions of the benchmarks on a GPU, a group of cases at a time, each told when it is measured.

    python -m benchmarks.gpu.losses bench_loss --way prefkit trl gemms

The measuring is `benchmarks.measure`. Errors against fp64 are left to the smoke checks at the
largest head, where the truth alone would hold 42 GB beside the inputs.
"""

import argparse
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.gpu.telling import device, seconds_left, tell
from benchmarks.measure import OUT_OF_MEMORY, measure
from benchmarks.problems import LOSSES, Case
from benchmarks.questions import FILES, Group, Question, load, tiny
from benchmarks.table import question_table
from benchmarks.ways import WAYS

OURS = ("prefkit", "one_pass", "two_pass", "gemms", "gemms_whole")
_BAD = ("failed", OUT_OF_MEMORY)
_LARGE = 8192  # D from which no errors are taken


def groups(
    questions: Sequence[Question], ways: Sequence[str], losses: Sequence[str], apart: bool
) -> Iterator[tuple[Question, Group]]:
    """The groups of a GPU, narrowed to some ways, each of them once.

    Those of `bench_loss` have a step of their own: other questions leave them out.

    Args:
        apart: each way beside prefkit in a group of its own.
    """
    seen: set[tuple[Case, ...]] = set()
    if all(question.name != "bench_loss" for question in questions):
        seen.update(group.cases for group in load("bench_loss").groups("gpu"))
    for question in questions:
        for group in question.groups("gpu"):
            if group.cases in seen or group.cases[0].loss not in losses:
                continue
            seen.add(group.cases)
            known = [name for name in ways if name in WAYS]
            if not apart:
                yield question, replace(group, ways=tuple(known))
                continue
            for name in known:
                yield question, replace(group, ways=("prefkit", name))


def shrunk(group: Group) -> Group:
    """For a rehearsal: shapes that take no time, and no memory to be seen."""
    return replace(group, cases=tuple(map(tiny, group.cases)), memory=False)


def one(question: Question, number: int, group: Group, where: str, titled: bool) -> list[str]:
    """Measures a group and tells its numbers and its tables, under the question's title or not.

    Returns:
        What of our own failed, in words.
    """
    gc.collect()
    gc.freeze()  # a collection before every step would look at a million objects of the libraries
    small = where == "cpu"
    errors = 0 if group.cases[0].dim >= _LARGE else min(question.error_tokens, 64 if small else 999)
    asked = replace(question, error_tokens=errors, rounds=1 if small else question.rounds)
    records = measure(asked, number, group, where, lambda what, share: None)
    for record in records:
        tell(record=record.as_dict())
    text = question_table(question, records).strip().replace("## ", "### ", 1)
    tell(markdown=text if titled else text.split("\n\n", 2)[2])
    # Only a peer may be unable to.
    return [f"{r.way}: {r.note}" for r in records if r.way in OURS and r.note.startswith(_BAD)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("question", nargs="+", choices=FILES)
    parser.add_argument("--way", nargs="+", required=True, help="one that there is not is skipped")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--apart", action="store_true", help="each way beside prefkit alone")
    options = parser.parse_args(arguments)
    where = device()
    longest, title_of, wrong = 0.0, "", []
    asked = groups([load(n) for n in options.question], options.way, options.losses, options.apart)
    for number, (question, group) in enumerate(asked):
        title = "; ".join(case.title for case in group.cases)
        if seconds_left() < longest:  # the next would be stopped in its middle, and tell nothing
            tell(row="Left out, the time is over", group=title, ways=", ".join(group.ways))
            continue
        start = time.monotonic()
        print(f"{title}: {', '.join(group.ways)}", flush=True)
        group = shrunk(group) if where == "cpu" else group
        wrong += one(question, number, group, where, titled=question.name != title_of)
        title_of = question.name
        longest = max(longest, time.monotonic() - start)
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
