"""The one reader of command lines and config files: fields of dataclasses become values.

A flag is a field's name (`--learning_rate 1e-6`, `--learning-rate=1e-6`), and so is a key of a YAML
file. A flag without a value means true; several values make a list.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prefkit.errors import ConfigError
from prefkit.options.check import check_option
from prefkit.options.command import Command
from prefkit.options.option import is_option, rules_of
from prefkit.options.page import parsed
from prefkit.options.values import coerce, is_switch_word, kinds_of
from prefkit.options.yaml_file import read_yaml

_LINE = "command line"


def read_file(command: Command, path: str) -> dict[str, Any]:
    """The options that a YAML file gives.

    Raises:
        ConfigError: anything wrong with the file, a key or a value.
    """
    values: dict[str, Any] = {}
    for name, value in read_yaml(path).items():
        name = name.replace("-", "_")
        command.refuse_unknown(name, path)
        values[name] = typed(command, name, value, path)
    return values


def read_flags(command: Command, flags: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The options that flags give.

    Args:
        command: whose flags they are.
        flags: of `split`.

    Raises:
        ConfigError: a flag without its value, with too many or with one of another type.
    """
    values: dict[str, Any] = {}
    for name, words in flags.items():
        kinds = kinds_of(command.fields[name][1])
        if not words and bool not in kinds:
            raise ConfigError(f"{name} needs a value: --{name} VALUE.")
        if len(words) > 1 and list not in kinds:
            raise ConfigError(f"{name} takes one value; got {len(words)}: {', '.join(words)}.")
        if rules_of(command.fields[name][0]).around_prompt:  # of a shell, "\n" is two characters
            words = [word.replace("\\n", "\n") for word in words]
        value = "true" if not words else words[0] if len(words) == 1 else list(words)
        values[name] = typed(command, name, value, _LINE)
    return values


def split(command: Command, argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Words before the first flag, and each flag's words.

    Raises:
        ConfigError: a flag that is unknown or given twice, a single dash, words of no flag.
    """
    check_dashes(argv)
    words, flags, rest = parsed(command, argv)
    for word in rest:
        command.refuse_unknown(_name(word) or word, _LINE)
    flags = {name: flags[name] for word in argv if (name := _name(word)) in flags}  # in its order
    for name, given in flags.items():
        switch = bool in kinds_of(command.fields[name][1])
        if switch and not words and given and "." in given[0] and not is_switch_word(given[0]):
            words, flags[name] = list(given), []  # --json FILE.yaml
    return words, flags


def join(words: Sequence[str], flags: Mapping[str, Sequence[str]]) -> list[str]:
    """A command line that `split` takes apart into these words and flags."""
    joined = list(words)
    for name, given in flags.items():
        dashes = len(given) == 1 and given[0].startswith("--")
        joined += [f"--{name}={given[0]}"] if dashes else [f"--{name}", *given]
    return joined


def check_dashes(argv: Sequence[str]) -> None:
    """Refuses what no command takes, whatever its options are.

    Raises:
        ConfigError: a flag given twice, or a single dash.
    """
    for word in argv:
        if len(word) > 1 and word[0] == "-" and word[1].isalpha():
            raise ConfigError(f"'{word}': flags start with two dashes, such as --{word[1:]}.")
    for name, count in Counter(filter(None, map(_name, argv))).items():
        if count > 1:
            raise ConfigError(f"--{name} is given twice. Keep one of the two.")


def _name(word: str) -> str:
    """The option that a word is the flag of; "" for other words."""
    return word[2:].partition("=")[0].replace("-", "_") if word[:2] == "--" else ""


def typed(command: Command, name: str, value: Any, where: str = "") -> Any:
    """A value of a file or of a flag, as the type of its option and within its limits.

    Args:
        where: it was given, for messages.

    Raises:
        ConfigError: it is of another type, or refused.
    """
    field, hint, _ = command.fields[name]
    try:
        read = coerce(name, value, hint)
        if is_option(field):
            check_option(field, hint, read)
        return read
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else f"{error}") from error
