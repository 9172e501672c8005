"""What a command of `prefkit` takes: words, and dataclasses whose fields are its flags."""

import dataclasses
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefkit.errors import ConfigError
from prefkit.options.option import former_names


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, as its help shows it and its words are read.

    Attributes:
        name: how it is called.
        line: what it takes and what it does, in the list of all commands.
        about: the same at more length, for its own help.
        words: what its words before the flags are, such as "PAIRS", and their help; None = none.
        options: dataclasses whose fields are its flags.
        without: fields that are no flags of this command.
        hidden: flags that the help leaves out.
        elsewhere: names of other libraries or commands → what to do instead.
        tail: what follows the flags in the help.
        method: whose defaults the help tells, where they depend on the method; None = all.
    """

    name: str
    line: tuple[str, str]
    about: str
    words: tuple[str, str] | None = None
    options: tuple[type, ...] = ()
    without: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    tail: str = ""
    method: str | None = None

    @functools.cached_property
    def fields(self) -> dict[str, tuple[dataclasses.Field, Any, type]]:
        """Flag → its field, its annotation and its dataclass; the first of several wins.

        The flag of a field `from_` is `--from`, a word that Python keeps for itself.
        """
        found: dict[str, tuple[dataclasses.Field, Any, type]] = {}
        for cls in self.options:
            hints = typing.get_type_hints(cls)
            for one in dataclasses.fields(cls):
                if one.name not in self.without:
                    found.setdefault(one.name.removesuffix("_"), (one, hints[one.name], cls))
        return found

    def groups(self) -> dict[str, list[str]]:
        """The flags under their titles; "" has those without one."""
        titles = {cls: _titles(cls) for cls in self.options}
        found: dict[str, list[str]] = {}
        for name, (one, _, cls) in self.fields.items():
            found.setdefault(titles[cls].get(one.name, ""), []).append(name)
        return found

    def refuse_unknown(self, name: str, where: str) -> None:
        """Refuses what is no option.

        Raises:
            ConfigError: names the nearest that is one.
        """
        if name in self.fields:
            return
        known = former_names(*self.options)
        remedy = unknown_name(name, self.fields, known, self.elsewhere)
        remedy = remedy or f"`prefkit {self.name} --help` lists the options."
        raise ConfigError(f"{where}: there is no option '{name}'. {remedy}")


def unknown_name(
    name: str,
    names: Collection[str],
    former: Mapping[str, str],
    elsewhere: Mapping[str, str],
) -> str:
    """What to do about a name that is none of `names`: "" where nothing is known of it.

    Args:
        former: earlier name → present name.
        elsewhere: names of other libraries or commands → what to do instead.
    """
    if now := former.get(name):
        return f"It is called '{now}' now."
    if name in elsewhere:
        return elsewhere[name]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else ""


def _titles(cls: type) -> dict[str, str]:
    """Field → the `# -- title` comment above it, in a dataclass and what it inherits from."""
    found: dict[str, str] = {}
    for one in cls.__mro__:
        if "__dataclass_fields__" in vars(one) and one.__module__.startswith("prefkit."):
            title = ""
            for line in inspect.getsource(one).splitlines():
                if heading := re.match(r"    # -- (.+?) -*$", line):
                    title = heading[1].strip()
                elif (own := re.match(r"    (\w+): ", line)) and own[1] in one.__annotations__:
                    found.setdefault(own[1], title)  # lines of a text may look alike
    return found
