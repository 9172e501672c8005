"""`prefkit build`: its flags and what it says; pairs are made in `prefkit.pairs`."""

import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefkit.errors import ConfigError
from prefkit.options.command import Command
from prefkit.options.parse import read_file, read_flags, split
from prefkit.pairs.fields import METHODS, BuildFields
from prefkit.pairs.run.options import check_method, resolved

if TYPE_CHECKING:
    from prefkit.pairs.run.build import BuildResult


@dataclass(kw_only=True)
class ConfigFile:
    """Where options may stand beside the flags."""

    # -- questions ------------------------------------------------------------------------------
    config: str | None = None
    """YAML file of options, which flags win over; None = flags only."""


_ABOUT = """\
The model solves the questions, its answers are graded, and its own mistakes become the pairs in
OUT/pairs.jsonl. OUT/manifest.json counts what was made and what was left out, and why. A build that
was interrupted, in whatever way, goes on where it stood when the same command is given again.

METHOD is one of
  dpo        right and wrong whole solutions (for dpo, tdpo1, tdpo2)
  step-dpo   the first wrong step, and a right one in its place
  scdpo      naive pairs, and continuations that leave a right solution half-way
  cdpo       pairs, a positive and a negative model, and a weight for every token
"""
COMMAND = Command(
    name="build",
    line=(
        "METHOD QUESTIONS --model M --out DIR",
        "pairs from questions and the model's own mistakes",
    ),
    about=_ABOUT,
    words=("METHOD QUESTIONS", "Method, and file, folder or Hub dataset of questions."),
    options=(ConfigFile, BuildFields),
    hidden=frozenset({"questions"}),
)
_BAR = 30  # characters of the longest bar


def run(argv: Sequence[str]) -> int:
    """Runs `prefkit build`; returns the exit code.

    Raises:
        PrefkitError: a user's mistake, or an engine that gave up.
    """
    from prefkit.pairs.run import build

    words, flags = split(COMMAND, argv)
    if not words:
        raise ConfigError(f"build: name a method ({', '.join(METHODS)}) and a file of questions.")
    check_method(words[0])
    options = read(COMMAND, words[0], words[1:], flags)
    quiet()
    _say_pairs(words[0], build.run(words[0], options, _weigh))
    return 0


def read(
    command: Command, method: str, words: Sequence[str], flags: dict[str, list[str]]
) -> BuildFields:
    """The resolved options of a command line that `split` has taken apart.

    Args:
        command: this one, or `prefkit evaluate`.
        method: of `prefkit.pairs.fields`.
        words: the questions.
        flags: and a config file, if one is named.

    Raises:
        ConfigError: anything wrong with a word, a flag, a value or their combination.
    """
    if len(words) > 1:
        raise ConfigError(f"One file or folder of questions, please; got {', '.join(words)}.")
    given = read_flags(command, flags)
    if (config := given.pop("config", None)) is not None:
        given = read_file(replace(command, options=(BuildFields,)), config) | given
    if words:
        given["questions"] = words[0]
    return resolved(method, given)


def _weigh(*given: Any) -> Any:
    from prefkit.critical_tokens import weigh  # torch and transformers

    return weigh(*given)


def quiet() -> None:
    """No bars of model loading between the command's own lines."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for module in ("transformers", "peft"):  # of options that are not the user's
        warnings.filterwarnings("ignore", module=module)


def _say_pairs(method: str, result: "BuildResult") -> None:
    """Verdicts to look at; what was made, and left out and why, at every stage; what to do next."""
    from prefkit.pairs.run.build import TRAIN
    from prefkit.pairs.run.verdicts import FILE, show

    manifest, folder = result.manifest, result.rows.parent
    if result.verdicts is not None and result.verdicts.records:
        print()
        show(result.verdicts, sys.stdout)
        print(f"Read them before you train; {folder / FILE} has them whole.")
    rows = f" in {manifest['rows']:,} rows" if "pairs" in manifest else ""
    print(f"\n{_asked(manifest)}, {result.count:,} pairs{rows}")
    for title in ("counts", "drops"):
        entries = manifest[title]
        if not entries:
            continue
        print("\nmade" if title == "counts" else "\nleft out")
        width, most = max(map(len, entries)), max(entries.values())
        for name, count in entries.items():
            print(f"  {name:{width}} {count:9,}  {'█' * round(_BAR * count / most)}")
    _say_judge(manifest)
    print(f"\nThe pairs are in {result.rows}, the counts in {folder}/manifest.json.")
    if manifest.get("weighted") is False:
        print(
            "They have no weights yet: join the shards (--join), or train one model on"
            "\npositive.jsonl and one on negative.jsonl, and weigh the pairs with prefkit score."
        )
        return
    config = shlex.quote(str(folder / TRAIN))
    print(f"Look at them:  prefkit inspect {config}")
    print(f"Train:         prefkit train {config} --output_dir {method}-model")


def _say_judge(manifest: dict[str, Any]) -> None:
    """What to do about answers of the judge that were cut off."""
    from prefkit.pairs.engines.base import SHORTENED
    from prefkit.pairs.localise.judge import CUT

    cut = sum(manifest["drops"].get(f"judge answers: {why}", 0) for why in CUT)
    if not cut:
        return
    most = manifest["options"]["judge_max_tokens"]
    notes = [run.get("notes", {}).get("judge", {}) for run in manifest["runs"]]
    remedy = f"Build into another folder with --judge_max_tokens {2 * most}"
    if any(note.get(SHORTENED) for note in notes):
        remedy += ", or, where its context is too short for that, with another judge"
    print(
        f"\n{cut:,} answers of the judge were cut off by judge_max_tokens ({most:,}), and are no "
        f"verdicts. {remedy}."
    )


def _asked(manifest: dict[str, Any]) -> str:
    """How many questions were asked, and what of the source was not."""
    found = manifest["questions"]
    text = f"{found['asked']:,} questions"
    if found["repeated"]:
        text += f" ({found['repeated']:,} rows repeated one)"
    if found["ignored"]:
        text += f" (not read: {', '.join(found['ignored'])})"
    return text
