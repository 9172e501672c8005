"""`prefkit evaluate QUESTIONS …`: how many questions a model solves, with the flags of a build."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefkit.cli.build import ConfigFile, quiet, read
from prefkit.options.command import Command
from prefkit.options.parse import split
from prefkit.pairs.fields import EVALUATE, BuildFields
from prefkit.pairs.run.options import used_by

if TYPE_CHECKING:
    from prefkit.pairs.run.build import BuildResult

_ABOUT = """\
Lets a model solve questions, greedily unless --temperature is above 0, grades its answers, and
prints the share of right ones with its 95 % interval; OUT/solutions.jsonl has what it wrote.
"""
COMMAND = Command(
    name="evaluate",
    line=("QUESTIONS --model M --out DIR", "how many questions a model solves"),
    about=_ABOUT,
    words=("QUESTIONS", "File, folder or Hub dataset of questions."),
    options=(ConfigFile, BuildFields),
    method=EVALUATE,
    hidden=frozenset(
        name for name in vars(BuildFields()) if name == "questions" or not used_by(name, EVALUATE)
    ),
)


def run(argv: Sequence[str]) -> int:
    """Runs `prefkit evaluate`; returns the exit code.

    Raises:
        PrefkitError: a user's mistake, or an engine that gave up.
    """
    words, flags = split(COMMAND, argv)
    options = read(COMMAND, EVALUATE, words, flags)
    quiet()
    from prefkit.pairs.run import build

    _say_accuracy(build.run(EVALUATE, options))
    return 0


def _say_accuracy(result: "BuildResult") -> None:
    found, manifest = result.manifest["evaluation"], result.manifest
    low, high = found["interval"]
    print(
        f"\n{found['accuracy']:.1%} right (95 % interval {low:.1%} to {high:.1%}): "
        f"{manifest['counts'].get('solutions right', 0):,} of {result.count:,} solutions to "
        f"{manifest['questions']['asked']:,} questions"
    )
    if result.count > manifest["questions"]["asked"]:
        print(f"{found['solved']:.1%} of the questions have a right solution.")
    if unfinished := manifest["counts"].get("solutions unfinished"):
        print(f"{unfinished:,} solutions ran into max_tokens and do not count as right.")
    if found["undecided"]:
        print(f"{found['wrong']:.1%} wrong, {found['undecided']:.1%} undecided:")
    for name, count in manifest["drops"].items():
        print(f"{name}: {count:,}")
    print(f"The solutions are in {result.rows}.")
