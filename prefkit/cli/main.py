"""The command `prefkit`: finds the command asked for, and turns errors into exit codes.

Everything heavy is imported only when it is used.
"""

import contextlib
import difflib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from prefkit.errors import PrefkitError

# Each is prefkit.cli.NAME, with COMMAND and run(argv); in the order of the work.
COMMANDS = (
    *("build", "score", "inspect", "plan", "train", "merge", "evaluate"),
    *("convert", "demo", "env"),
)
_FLAGS = """\
  --version           print the version
  --completion SHELL  print a script that completes commands and flags in bash, zsh or fish
  --help              this text; `prefkit COMMAND --help` tells more"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    0 done, 1 a loss that became NaN, 2 a user's mistake, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("--help", "-h", "help"):
        sys.stdout.write(overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        from prefkit.version import VERSION

        print(f"prefkit {VERSION}")
        return 0
    try:
        code = _complete(argv[1:]) if argv[0] == "--completion" else _run(argv[0], argv[1:])
        sys.stdout.flush()  # a full disk shows here
        return code
    except PrefkitError as error:
        if os.environ.get("PREFKIT_TRACEBACK"):
            traceback.print_exc()
        print(f"prefkit: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("\nprefkit: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `prefkit inspect … | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if argv[0] == "train":
            raise  # in the middle of a run: where it happened matters
        if os.environ.get("PREFKIT_TRACEBACK"):
            traceback.print_exc()
        print(f"prefkit: {argv[0]}: {error}. (PREFKIT_TRACEBACK=1 shows more.)", file=sys.stderr)
        with contextlib.suppress(OSError):
            sys.stdout.close()  # or Python would complain of what it could not write at exit
        return 2


def _run(name: str, argv: Sequence[str]) -> int:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Use one of: {', '.join(COMMANDS)}."
        raise PrefkitError(f"'{name}' is no command. {hint}")
    module = import_module(f"prefkit.cli.{name}")
    if "--help" in argv or "-h" in argv:
        from prefkit.options.page import show_help

        show_help(module.COMMAND)
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return int(module.run(argv))


def _complete(shells: Sequence[str]) -> int:
    from prefkit.options.page import completion

    print(completion(_commands(), " ".join(shells)))
    return 0


def _commands() -> list[Any]:
    return [import_module(f"prefkit.cli.{name}").COMMAND for name in COMMANDS]


def overview() -> str:
    """The list of all commands."""
    lines = [f"  {f'{one.name} {one.line[0]}':45} {one.line[1]}" for one in _commands()]
    return "\n".join(["usage: prefkit COMMAND …", "", *lines, "", _FLAGS]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
