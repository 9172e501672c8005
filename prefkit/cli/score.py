"""`prefkit score`: its flags and files; the scores are computed in `prefkit.critical_tokens`."""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefkit.critical_tokens.fields import ScoreFields
from prefkit.errors import ConfigError
from prefkit.files.atomic import check_writable, write_text
from prefkit.options.check import check_options
from prefkit.options.command import Command
from prefkit.options.option import option
from prefkit.options.parse import read_flags, split


@dataclass(kw_only=True)
class FileOptions:
    """What is scored by what, into which file."""

    # -- file -----------------------------------------------------------------------------------
    positive: str = option("", missing="Name the model tuned on right solutions: --positive MODEL.")
    """Model tuned on right solutions (required)."""
    negative: str = option("", missing="Name the model tuned on wrong ones: --negative MODEL.")
    """Model tuned on wrong solutions (required)."""
    out: str = option("", missing="Name the file of the scored rows: --out FILE.jsonl.")
    """File of the scored rows: .jsonl, or .json with --format prob_result (required)."""


_ABOUT = """\
Contrastive scores of cDPO (arXiv 2411.19943) for the tokens of the rejected responses, by two
models: P tuned on right solutions, N on wrong ones. Folders of models, of peft adapters, or Hub
names.

The file has the rows with `rejected_weights` (1 - s of each token, with the token ids), ready for
`prefkit train --method cdpo` with the same data options; `prefkit inspect FILE` shows them.

Killed, the same command goes on where it was (FILE.scores keeps what was computed until the end).
"""
COMMAND = Command(
    name="score",
    line=("PAIRS --positive P --negative N --out F", "weigh their tokens by two models (cDPO)"),
    about=_ABOUT,
    words=("PAIRS", "File or dataset of pairs."),
    options=(FileOptions, ScoreFields),
)


def run(argv: Sequence[str]) -> int:
    """Scores a file of pairs; returns the exit code.

    Raises:
        PrefkitError: a mistake in the options, the rows or the models.
    """
    source, files, options = _read(argv)
    out = Path(files.out)
    _check_out(out, options)
    if _place(files.positive) == _place(files.negative):
        raise ConfigError(
            f"positive and negative are both {files.positive}: every score would be that model's "
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
            source, files.positive, files.negative, options, work_file=work, progress=True
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


def _read(argv: Sequence[str]) -> tuple[str, FileOptions, ScoreFields]:
    """The pairs, the files and the options of a command line.

    Raises:
        ConfigError: a flag that is unknown, misses its value or cannot be read.
    """
    words, flags = split(COMMAND, argv)
    if len(words) != 1:
        raise ConfigError(f"Name one file or dataset of pairs; got {len(words)}.")
    given = read_flags(COMMAND, flags)
    files = FileOptions(**{name: given.pop(name) for name in vars(FileOptions()) if name in given})
    check_options(files)
    return words[0], files, ScoreFields(**given)


def _place(name: str) -> str:
    """A model's folder, however it is written; a Hub name as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.exists() else name


def skipped_file(out: Path) -> Path:
    """Where rows that were left out are listed."""
    return out.with_name(out.name + ".skipped.jsonl")


def _check_out(out: Path, options: ScoreFields) -> None:
    ending = ".json" if options.format == "prob_result" else ".jsonl"
    if out.suffix != ending:
        raise ConfigError(f"out: {out} must end in {ending} with --format {options.format}.")
    if out.exists():
        raise ConfigError(f"out: {out} is there already. Remove it, or name another file.")
    check_writable(out.parent, "out")
