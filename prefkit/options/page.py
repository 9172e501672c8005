"""A command as tyro takes it: a box of flags for each group of fields.

tyro splits the command line and writes the help. It is given every flag as a list of words: what
they mean is read in one place for flags and files, `prefkit.options.values`.
"""

import contextlib
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import Field, field, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, cast

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from prefkit.errors import ConfigError
from prefkit.options.command import Command
from prefkit.options.option import choices_of, default_of, field_docs, rules_of
from prefkit.options.values import metavar


class _Words(list):
    """The words behind a flag; a flag that is not given is None."""


def parsed(
    command: Command, argv: Sequence[str]
) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """A command line taken apart.

    Returns:
        words before the flags; flag → its words; what is left over, in its order.
    """
    found, rest = _cli(command, argv, return_unknown_args=True)
    values = vars(found)
    for group in [group for group in values.values() if is_dataclass(group)]:
        values = values | vars(group)
    given = {name: list(value) for name, value in values.items() if isinstance(value, _Words)}
    words = given.pop(_WORDS, [])
    return words, {name.removesuffix("_"): value for name, value in given.items()}, rest


def show_help(command: Command) -> None:
    """Prints what a command does, and every flag with its values and its default."""
    for part in command.about.strip().split("\n\n"):  # tyro would neither wrap nor keep its lines
        print(part if "\n  " in part else textwrap.fill(part, _WIDTH), end="\n\n")
    with contextlib.suppress(SystemExit):
        _cli(command, ["--help"], command.hidden)
    if command.tail:
        print(command.tail)


def completion(commands: Sequence[Command], shell: str) -> str:
    """A script by which a shell completes the commands and their flags.

    Raises:
        ConfigError: a shell that tyro writes none for.
    """
    if shell not in _SHELLS:
        raise ConfigError(f"completion is {shell!r}; it must be one of: {', '.join(_SHELLS)}.")
    pages = [
        Annotated[_page(one, one.hidden), tyro.conf.subcommand(one.name, description=one.line[1])]
        for one in commands
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "script")
        with contextlib.suppress(SystemExit):
            tyro.cli(
                cast(Any, Union[tuple(pages)]),  # noqa: UP007  # made at run time
                args=["--tyro-write-completion", shell, str(file)],
                prog="prefkit",
                use_underscores=True,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
        return file.read_text(encoding="utf-8")


_SHELLS = ("bash", "zsh", "fish")
_WORDS, _WIDTH = "words_", 80  # the width of tyro's boxes


def _cli(
    command: Command, argv: Sequence[str], hidden: frozenset[str] = frozenset(), **options: Any
) -> Any:
    return tyro.cli(
        _page(command, hidden),
        args=argv,
        prog=f"prefkit {command.name}",
        description="",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
        **options,
    )


def _page(command: Command, hidden: frozenset[str]) -> type:
    """A dataclass for tyro: the words, the flags without a title, and a dataclass a title."""
    groups = {
        title: [name for name in names if name not in hidden]
        for title, names in command.groups().items()
    }
    made = [_flag(command, name) for name in groups.pop("", [])]
    if command.words:
        words = tyro.conf.Positional[_argument(*command.words)]  # type: ignore[misc, valid-type]
        made.insert(0, (_WORDS, words, field(default=None)))
    for number, (title, names) in enumerate(groups.items()):  # tyro leaves out empty ones
        group = make_dataclass(f"Group{number}", [_flag(command, name) for name in names])
        group.__doc__ = None
        made.append(
            (
                f"group_{number}",
                Annotated[group, tyro.conf.arg(name=title)],
                field(default_factory=group),
            )
        )
    return make_dataclass("Page", made)


def _flag(command: Command, name: str) -> tuple[str, Any, Any]:
    """A field as `make_dataclass` takes it."""
    option, hint, cls = command.fields[name]
    text = field_docs(cls).get(option.name, "")
    values = metavar(hint, choices_of(option, hint))
    shown = "" if "None = " in text or "(required)" in text else _default(command, option)
    called = name if name != option.name else None
    return option.name, _argument(values, text, shown, called), field(default=None)


def _default(command: Command, option: Field) -> str:
    """A default as the help tells it: the command's method's, or that of each method."""
    by_method = rules_of(option).by_method
    if not by_method:
        return f"(default: {_shown(default_of(option))})"
    if command.method is not None and command.method in by_method:
        return f"(default: {_shown(by_method[command.method])})"
    values: dict[str, list[str]] = {}
    for method, value in by_method.items():
        values.setdefault(_shown(value), []).append(method)
    told = (f"{', '.join(methods)} {value}" for value, methods in values.items())
    return f"(default: {'; '.join(told)})"


def _shown(default: Any) -> str:
    """A value as a user would write it."""
    if isinstance(default, list):
        default = " ".join(map(str, default)) or None
    if default is None or isinstance(default, bool):
        default = str(default).lower()
    return str(default) if default != "" else '""'


def _argument(values: str, text: str = "", default: str = "", name: str | None = None) -> Any:
    """An annotation by which tyro takes any number of words, and shows these texts."""
    words = PrimitiveConstructorSpec(
        nargs="*",
        metavar=values,
        instance_from_str=_Words,
        is_instance=lambda _: True,
        str_from_instance=lambda _: [],
    )
    return Annotated[Any, words, tyro.conf.arg(help=text, name=name, help_behavior_hint=default)]
