"""`prefkit convert`: the config of another trainer as one of `prefkit train`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefkit.cli import train
from prefkit.cli.config_file import checked, names_of_transformers
from prefkit.errors import ConfigError
from prefkit.files.atomic import write_text
from prefkit.options.command import Command
from prefkit.options.option import option
from prefkit.options.parse import read_flags, split
from prefkit.options.yaml_file import read_yaml

REFUSED = 1  # the exit code where something of the config has no place here


@dataclass(kw_only=True)
class ConvertOptions:
    """What is read, and where its translation goes."""

    # -- convert --------------------------------------------------------------------------------
    from_: Literal["trl", "llamafactory", "axolotl"] | None = option(None)
    """Whose config it is; None = told by its names."""
    out: str = "prefkit.yaml"
    """The config that is written."""
    force: bool = False
    """Write over a file that is there."""
    skip_refused: bool = False
    """Leave out what changes the training and has no place in prefkit; the written file says so."""


_ABOUT = """\
The config of another trainer as one of `prefkit train`: TRL (`trl dpo`), LLaMA-Factory and axolotl.

Each of its keys is shown under what became of it, and the trainer's defaults are written out where
prefkit has others. Where something that changes the training has no place here, nothing is written
and the exit code is 1, unless --skip-refused is given. See docs/convert.md.
"""
COMMAND = Command(
    name="convert",
    line=("CONFIG.yaml [--from trl]", "another trainer's config as one of prefkit"),
    about=_ABOUT,
    words=("CONFIG.yaml", "The config of TRL, LLaMA-Factory or axolotl."),
    options=(ConvertOptions,),
)


def run(argv: Sequence[str]) -> int:
    """Translates the config that a command line names; returns the exit code.

    Raises:
        ConfigError: nobody's config, or one of prefkit; a file that cannot be read or written.
    """
    words, flags = split(COMMAND, argv)
    if len(words) != 1:
        raise ConfigError(f"convert: name one config file; got {', '.join(words) or 'none'}.")
    given = read_flags(COMMAND, flags)
    options = ConvertOptions(**{("from_" if k == "from" else k): v for k, v in given.items()})
    out = Path(options.out)
    if not Path(words[0]).is_file():
        raise ConfigError(f"{words[0]}: there is no such file.")
    if out.exists() and not options.force:
        raise ConfigError(f"out: {out} is there already. Choose another, or add --force.")
    return _convert(words[0], options, out)


def _convert(path: str, options: ConvertOptions, out: Path) -> int:
    from prefkit.convert.engine import translate
    from prefkit.convert.report import config_file, table

    content = read_yaml(path)
    command, inherited = train.whole(train.COMMAND), names_of_transformers()
    trainer, told = _trainer(path, content, options.from_, command)
    translation = checked(translate(trainer, content, command, inherited))
    print(f"{path}: {trainer.title} {trainer.version}{told}\n\n{table(translation)}\n")
    refused = translation.of_kind("refused")
    losses = [line.key for line in refused if line.is_loss]
    if losses or (refused and not options.skip_refused):
        print(f"Nothing is written.\n{_remedy(len(refused), losses)}")
        return REFUSED
    try:
        write_text(out, config_file(translation, path))
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written ({error.strerror}).") from error
    print(f"Written to {out}.")
    missing = [name for name in ("model", "train_data") if name not in translation.options]
    if missing:
        print(f"Before it can train, write into it: {', '.join(missing)}.")
    print(f"Look at its rows:  prefkit inspect {out}")
    print(f"Train:             prefkit train {out}")
    return 0


def _trainer(
    path: str, content: Mapping[str, Any], name: str | None, command: Command
) -> tuple[Any, str]:
    """The trainer, and how it was told.

    Raises:
        ConfigError: the names do not say.
    """
    from prefkit.convert.engine import find_trainer, named_trainer

    if name is not None:
        return named_trainer(name), ""
    found = find_trainer(content, command.fields, names_of_transformers())
    if found is None:
        own = [key for key in ("model", "train_data", "method") if key in content]
        if own:
            raise ConfigError(f"{path} is a config of prefkit: it has {', '.join(own)}.")
        raise ConfigError(
            f"{path}: its names do not say whose config it is. Say it: --from trl, llamafactory or "
            "axolotl."
        )
    return found.trainer, f", told by {', '.join(found.keys[:4])}"


def _remedy(count: int, losses: Sequence[str]) -> str:
    if losses:
        return f"Without {losses[0]} it would be another loss, and another run. Choose one."
    what = "the refused key" if count == 1 else f"the {count} refused keys"
    return f"Correct {what}, or add --skip-refused: the file then says what was left out."
