"""Help texts written from the documentation under the fields of dataclasses."""

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence

_WIDTH, _TEXT = 32, 66


def groups(cls: type) -> list[tuple[str, list[str]]]:
    """Field names under the `# -- title` comments of a dataclass and of what it inherits from."""
    found: dict[str, list[str]] = {}
    for one in cls.__mro__:
        if "__dataclass_fields__" in vars(one) and one.__module__.startswith("prefkit."):
            _collect(one, found)
    return [(title, names) for title, names in found.items() if names]


def _collect(cls: type, found: dict[str, list[str]]) -> None:
    """Adds a class's own fields under its titles; groups of the same title become one."""
    title = ""
    for line in inspect.getsource(cls).splitlines():
        if heading := re.match(r"    # -- (.+?) -*$", line):
            title = heading[1].strip()
        elif (field := re.match(r"    (\w+): ", line)) and field[1] in cls.__annotations__:
            found.setdefault(title, []).append(field[1])  # lines of a text may look alike


def default(name: str, classes: Sequence[type]) -> str:
    """The default of a field of one of the classes, where the text does not tell it."""
    for cls in classes:
        value = getattr(cls, name, None)
        if isinstance(value, bool):
            return f" ({str(value).lower()})"
        if value not in (None, ""):
            return f" ({value})"
    return ""


def write_help(
    head: str,
    sections: Sequence[tuple[str, Mapping[str, str]]],
    classes: Sequence[type],
    tail: str = "",
) -> str:
    """The help text of a command whose flags are fields.

    Args:
        head: usage, and what precedes the options.
        sections: title, and the text of every flag by its name.
        classes: dataclasses whose defaults are told.
        tail: what follows.
    """
    lines = [head]
    for title, entries in sections:
        lines += ["", f"{title}:"]
        for name, text in entries.items():
            wrapped = textwrap.wrap(text + default(name, classes), _TEXT)
            flag = f"  --{name}"
            if len(flag) > _WIDTH - 1:
                lines.append(flag)
                flag = ""
            lines += [f"{flag:{_WIDTH}}{wrapped[0]}"]
            lines += [" " * _WIDTH + more for more in wrapped[1:]]
    return "\n".join([*lines, *(["", tail] if tail else [])]) + "\n"
