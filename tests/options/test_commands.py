"""The one reader of command lines: what every command shows, what words become, what is refused."""

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest

from prefkit.cli.main import COMMANDS, main
from prefkit.errors import ConfigError
from prefkit.options.command import Command
from prefkit.options.option import default_of, field_docs, option
from prefkit.options.parse import join, read_file, read_flags, split


@dataclass(kw_only=True)
class SmallOptions:
    """A few options of every kind."""

    # -- numbers --------------------------------------------------------------------------------
    rate: float = option(1.0, formerly="speed")
    """How fast."""
    rising: list[float] | None = None
    """Several numbers."""
    # -- others ---------------------------------------------------------------------------------
    kind: Literal["plain", "odd"] = "plain"
    """Which."""
    joiner: str = option("", around_prompt=True)
    """Text between two others."""
    json: bool = False
    """Whether as JSON."""
    names: dict | str | None = None
    """A mapping, or a file of one."""
    secret: int = 0
    """Not shown."""


SMALL = Command(
    name="small",
    line=("FILE", "does little"),
    about="Does little.",
    words=("FILE", "A file."),
    options=(SmallOptions,),
    hidden=frozenset({"secret"}),
    elsewhere={"velocity": "Use rate."},
)


def read(*argv: str) -> tuple[list[str], dict[str, Any]]:
    words, flags = split(SMALL, argv)
    return words, read_flags(SMALL, flags)


@pytest.mark.parametrize(
    ("line", "words", "values"),
    [
        ("a b --rate 2", ["a", "b"], {"rate": 2.0}),
        ("--rate=-1e-3 --json", [], {"rate": -1e-3, "json": True}),
        ("--rising 1 2.5 -3", [], {"rising": [1.0, 2.5, -3.0]}),
        ("--rising 4", [], {"rising": [4.0]}),
        ("--json a.yaml --kind odd", ["a.yaml"], {"json": True, "kind": "odd"}),
        ("--json a --kind odd", [], "json is 'a'; it must be true or false"),
        ("--json no a", [], "json takes one value"),
        ("--json no", [], {"json": False}),
        (r"--joiner \n\n", [], {"joiner": "\n\n"}),
        ("--joiner=--x", [], {"joiner": "--x"}),
        ("--joiner -", [], {"joiner": "-"}),
        ("--joiner=", [], {"joiner": ""}),
        ('--names {"a":null}', [], {"names": {"a": None}}),
        ("--names none", [], {"names": None}),
        ("--names a.json", [], {"names": "a.json"}),
        ("--secret 3", [], {"secret": 3}),
        ("--rate", [], "rate needs a value: --rate VALUE"),
        ("--rate 1 2", [], "rate takes one value; got 2: 1, 2"),
        ("--rate 1 --rate 2", [], "--rate is given twice"),
        ("--rate 1 -joiner x", [], "'-joiner': flags start with two dashes, such as --joiner"),
        ("--rate fast", [], "command line: rate is 'fast'; it must be a number"),
        ("--rising 1 x", [], "rising is 'x'; it must be a number"),
        ("--kind even", [], "kind is 'even'; it must be one of: plain, odd"),
        ("--rat 1", [], "there is no option 'rat'. Did you mean 'rate'?"),
        ("--speed 1", [], "there is no option 'speed'. It is called 'rate' now"),
        ("--velocity 1", [], "there is no option 'velocity'. Use rate"),
        ("--xyzzy 1", [], "`prefkit small --help` lists the options"),
    ],
)
def test_words_become_values(line: str, words: list[str], values: Any) -> None:
    if isinstance(values, str):
        with pytest.raises(ConfigError) as error:
            read(*line.split())
        assert values in str(error.value)
    else:
        assert read(*line.split()) == (words, values)


def test_files_are_read_as_flags_are(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("rate: 2\nrising: [1, 2.5]\njoiner: no\nnames: {a: 1}\nkind: odd\n")
    found = {"rate": 2, "rising": [1, 2.5], "joiner": "no", "names": {"a": 1}, "kind": "odd"}
    assert read_file(SMALL, str(file)) == found
    file.write_text("speed: 2\n")
    with pytest.raises(ConfigError, match=r"small\.yaml: there is no option 'speed'.*'rate' now"):
        read_file(SMALL, str(file))


def test_words_are_joined_as_they_were_taken_apart() -> None:
    argv = ["a", "--joiner=--x", "--rising", "1", "2", "--json"]
    words, flags = split(SMALL, argv)
    assert join(words, flags) == argv


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_flags_in_one_form(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = import_module(f"prefkit.cli.{name}").COMMAND
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert f"usage: prefkit {name} " in shown
    flat = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    for flag, (field, _, cls) in command.fields.items():
        text, default = field_docs(cls)[field.name], default_of(field)
        assert (f"--{flag} " in flat) == (flag not in command.hidden), flag
        if flag in command.hidden:
            continue
        elsewhere = any(words in text for words in ("None = ", "left out", "(required)"))
        told = "" if elsewhere else " (default: "
        if told and default not in (None, "", []) and not isinstance(default, list):
            told += f"{str(default).lower() if isinstance(default, bool) else default})"
        assert f"{' '.join(text.split())}{told}" in flat, flag


def test_the_overview_has_every_command_and_imports_nothing_heavy() -> None:
    code = "import sys; from prefkit.cli.main import main; main(['--help']); "
    code += "print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    heavy = {"torch", "transformers", "numpy", "datasets", "rich", "openai"}
    assert not heavy & {*done.stderr.split()}


def test_a_shell_completes_commands_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "complete -F" in script
    assert all(word in script for word in (*COMMANDS, "--judge_max_tokens", "--score_tool_output"))
    assert main(["--completion", "cmd"]) == 2
    assert "one of: bash, zsh, fish" in capsys.readouterr().err
