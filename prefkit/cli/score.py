"""prefkit score PAIRS --positive P --negative N --out FILE [--option value …]

Contrastive scores of cDPO (arXiv 2411.19943) for the tokens of the rejected responses, by two
models: P tuned on right solutions, N on wrong ones. Folders of models, of peft adapters, or Hub
names. FILE holds the rows with `rejected_weights` (1 - s of each token, with the token ids), ready
for `prefkit train FILE --method cdpo` with the same data options; `prefkit inspect FILE` shows
them.

Killed, the same command goes on where it was (FILE.scores keeps what was computed until the end).
"""

import json
import logging
import shlex
import sys
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from prefkit.critical_tokens.fields import ScoreFields
from prefkit.errors import ConfigError
from prefkit.files.atomic import check_writable, write_text
from prefkit.options.option import field_docs
from prefkit.options.parse import coerce, split_flags

_OWN = {
    "positive": "Model tuned on right solutions (required).",
    "negative": "Model tuned on wrong solutions (required).",
    "out": "File of the scored rows: .jsonl, or .json with --format prob_result (required).",
}


def run(argv: Sequence[str]) -> int:
    """Scores a file of pairs; returns the exit code.

    Raises:
        PrefkitError: a mistake in the options, the rows or the models.
    """
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(_help())
        return 0
    source, own, options = parse(argv)
    out = Path(own["out"])
    _check_out(out, options)
    if _place(own["positive"]) == _place(own["negative"]):
        raise ConfigError(
            f"positive and negative are both {own['positive']}: every score would be that model's "
            "own probability. Name the model tuned on right solutions and that tuned on wrong ones."
        )
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    from prefkit.critical_tokens.scoring import score_pairs
    from prefkit.critical_tokens.writing import as_columns
    from prefkit.data.report import write_incidents

    work = out.with_name(out.name + ".scores")
    try:
        found = score_pairs(
            source, own["positive"], own["negative"], options, work_file=work, progress=True
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted. The same command goes on from {work}.", file=sys.stderr)
        return 130
    if options.format == "prob_result":
        text = json.dumps(as_columns(found.rows), ensure_ascii=False) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
    write_text(out, text)
    work.unlink(missing_ok=True)
    write_incidents(skipped_file(out), found.incidents)
    print(found.summary())
    if found.incidents:
        print(f"listed in {skipped_file(out)}")
    print(f"The scored pairs are in {out}.")
    if options.format == "weights":
        level = f" --level {options.level}" if options.level != "auto" else ""
        if options.columns:
            level += f" --columns {shlex.quote(json.dumps(options.columns))}"
        print(
            f"Train:  prefkit train --method cdpo --train_data {shlex.quote(str(out))}{level} "
            "--model MODEL"
        )
    return 0


def _place(name: str) -> str:
    """A model's folder, however it is written; a Hub name as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.exists() else name


def skipped_file(out: Path) -> Path:
    """Where rows that were left out are listed."""
    return out.with_name(out.name + ".skipped.jsonl")


def parse(argv: Sequence[str]) -> tuple[str, dict[str, str], ScoreFields]:
    """The source, `_OWN` and the options of a command line.

    Raises:
        ConfigError: a flag that is unknown, misses its value or cannot be read.
    """
    words, flags = split_flags(argv)
    if len(words) != 1:
        raise ConfigError(f"Name one file or dataset of pairs; got {len(words)}.")
    hints = typing.get_type_hints(ScoreFields)
    names = {field.name for field in fields(ScoreFields)}
    own: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, given in flags.items():
        if name not in _OWN and name not in names:
            raise ConfigError(_unknown(name, [*_OWN, *names]))
        if not given and hints.get(name) is not bool:
            raise ConfigError(f"{name} needs a value: --{name} VALUE.")
        if len(given) > 1:
            raise ConfigError(f"{name} takes one value; got {len(given)}: {', '.join(given)}.")
        text = given[0] if given else "true"
        if name in _OWN:
            own[name] = text
        else:
            values[name] = coerce(name, text, hints[name])
    for name in _OWN:
        if name not in own:
            raise ConfigError(f"{name} is missing. `prefkit score --help` lists the options.")
    return words[0], own, ScoreFields(**values)


def _unknown(name: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"Did you mean --{near[0]}?" if near else "`prefkit score --help` lists the options."
    return f"there is no option '{name}'. {hint}"


def _check_out(out: Path, options: ScoreFields) -> None:
    ending = ".json" if options.format == "prob_result" else ".jsonl"
    if out.suffix != ending:
        raise ConfigError(f"out: {out} must end in {ending} with --format {options.format}.")
    if out.exists():
        raise ConfigError(f"out: {out} is there already. Remove it, or name another file.")
    check_writable(out.parent, "out")


def _help() -> str:
    lines = [str(__doc__).strip(), ""]
    defaults = ScoreFields()
    docs = field_docs(ScoreFields)
    for name, text in {**_OWN, **docs}.items():
        value = getattr(defaults, name, None)
        shown = "" if value in (None, "") else f" ({str(value).lower()})"
        wrapped = textwrap.wrap(text + shown, 70)
        lines += [f"  --{name:24}{wrapped[0]}", *(" " * 28 + more for more in wrapped[1:])]
    return "\n".join(lines) + "\n"
