"""`prefkit build METHOD QUESTIONS …` and `prefkit evaluate QUESTIONS …`: their command lines."""

import dataclasses
import shlex
import sys
import typing
import warnings
from collections.abc import Sequence
from typing import Any

from prefkit.errors import ConfigError
from prefkit.options.parse import (
    coerce,
    flag_value,
    read_yaml,
    refuse_bare,
    refuse_unknown,
    split_flags,
    unescaped,
)
from prefkit.pairs.engines.base import SHORTENED
from prefkit.pairs.fields import EVALUATE, METHODS, BuildFields
from prefkit.pairs.localise.judge import CUT
from prefkit.pairs.run.build import TRAIN, BuildResult, run
from prefkit.pairs.run.options import check_method, resolved, used_by
from prefkit.pairs.run.verdicts import FILE as VERDICTS
from prefkit.pairs.run.verdicts import show

_BUILD_USAGE = """\
usage: prefkit build METHOD QUESTIONS --model MODEL --out FOLDER [--config FILE.yaml] [--field …]

  dpo        right and wrong whole solutions (for dpo, tdpo1, tdpo2)
  step-dpo   the first wrong step, and a right one in its place
  scdpo      naive pairs, and continuations that leave a right solution half-way
  cdpo       pairs, a positive and a negative model, and a weight for every token

The model solves the questions, its answers are graded, and its own mistakes become the pairs in
FOLDER/pairs.jsonl; FOLDER/manifest.json counts what was made and what was left out, and why. A
build that was interrupted, in whatever way, goes on where it stood when the same command is given
again."""
_EVALUATE_USAGE = """\
usage: prefkit evaluate QUESTIONS --model MODEL --out FOLDER [--config FILE.yaml] [--field …]

Lets a model solve questions, greedily unless --temperature is above 0, grades its answers, and
prints the share of right ones with its 95 % interval; FOLDER/solutions.jsonl has what it wrote."""
_NOT_FLAGS = ("questions",)
_BAR = 30  # characters of the longest bar


def run_build(argv: Sequence[str]) -> int:
    """Runs `prefkit build`; returns the exit code.

    Raises:
        PrefkitError: a user's mistake, or an engine that gave up.
    """
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(_help(_BUILD_USAGE))
        return 0
    words, flags = split_flags(argv)
    if not words:
        raise ConfigError(f"build: name a method ({', '.join(METHODS)}) and a file of questions.")
    check_method(words[0])
    options = parse(words[0], words[1:], flags)
    _quiet()
    _say_pairs(words[0], run(words[0], options, _weigh))
    return 0


def run_evaluate(argv: Sequence[str]) -> int:
    """Runs `prefkit evaluate`; returns the exit code.

    Raises:
        PrefkitError: a user's mistake, or an engine that gave up.
    """
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(_help(_EVALUATE_USAGE, EVALUATE))
        return 0
    options = parse(EVALUATE, *split_flags(argv))
    _quiet()
    _say_accuracy(run(EVALUATE, options))
    return 0


def _weigh(*given: Any) -> Any:
    from prefkit.critical_tokens import weigh  # torch and transformers

    return weigh(*given)


def _quiet() -> None:
    """No bars of model loading between the command's own lines."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for module in ("transformers", "peft"):  # of options that are not the user's
        warnings.filterwarnings("ignore", module=module)


def parse(method: str, words: Sequence[str], flags: dict[str, list[str]]) -> BuildFields:
    """The resolved options of a command line: the questions, and flags.

    Raises:
        ConfigError: anything wrong with a word, a flag, a value or their combination.
    """
    if len(words) > 1:
        raise ConfigError(f"One file or folder of questions, please; got {', '.join(words)}.")
    config = flags.pop("config", [])
    values = {name: ("--config", value) for name, value in _from_file(config).items()}
    for name, given in flags.items():
        values[name] = ("command line", unescaped(name, flag_value(given)))
    options = _coerced(values, flags)
    if words:
        options["questions"] = words[0]
    return resolved(method, options)


def _from_file(config: list[str]) -> dict[str, Any]:
    if len(config) > 1:
        raise ConfigError(f"config: one file, please; got {len(config)}.")
    return read_yaml(config[0]) if config else {}


def _coerced(values: dict[str, tuple[str, Any]], flags: dict[str, list[str]]) -> dict[str, Any]:
    hints = typing.get_type_hints(BuildFields)
    known = [field.name for field in dataclasses.fields(BuildFields)]
    options = {}
    for name, (where, value) in values.items():
        refuse_unknown(name, known, where, "build")
        if where == "command line" and not flags[name]:
            refuse_bare(name, hints[name])
        options[name] = _typed(name, value, hints[name], where)
    return options


def _typed(name: str, value: Any, hint: Any, where: str) -> Any:
    try:
        if name in ("temperature", "rising") and isinstance(value, list):
            return [coerce(name, one, float) for one in value]
        return coerce(name, value, hint)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _help(usage: str, method: str | None = None) -> str:
    from prefkit.options.help import groups, write_help
    from prefkit.train.fields import field_docs

    docs = field_docs(BuildFields)
    hidden = {*_NOT_FLAGS, *(n for n in docs if method is not None and not used_by(n, method))}
    sections = [
        (title, {name: docs[name] for name in names if name not in hidden})
        for title, names in groups(BuildFields)
    ]
    return write_help(usage, [(title, found) for title, found in sections if found], (BuildFields,))


def _say_pairs(method: str, result: BuildResult) -> None:
    """Verdicts to look at; what was made, and left out and why, at every stage; what to do next."""
    manifest, folder = result.manifest, result.rows.parent
    if result.verdicts is not None and result.verdicts.records:
        print()
        show(result.verdicts, sys.stdout)
        print(f"Read them before you train; {folder / VERDICTS} has them whole.")
    print(f"\n{_asked(manifest)}, {result.count:,} pairs")
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


def _say_accuracy(result: BuildResult) -> None:
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
