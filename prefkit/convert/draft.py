"""What becomes of each key of another trainer's config; each is accounted for exactly once.

Rules ask a `Draft` for values and tell it what they mean: options of prefkit (`write`), nothing
that decides what is learnt (`leave`), or something that prefkit does not do (`refuse`). What their
trainer does where a key is missing is a value like others: only its lines are told apart.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from prefkit.errors import ConfigError
from prefkit.options.command import Command
from prefkit.options.option import default_of
from prefkit.options.parse import typed
from prefkit.options.values import kinds_of

_KEEP_ONE = "Keep one of the two."


@dataclass(frozen=True, kw_only=True)
class Line:
    """What became of one key.

    Attributes:
        key: as the file has it; within another key `outer.key`, in a list `outer[0].key`.
        value: its value, or the trainer's default.
        is_default: the file does not have the key.
        is_same: an option of the same name has the same value.
        written: the options of prefkit that it became.
        why: for what is left out or refused, the reason; else what differs, or "".
        remedy: what to do instead, where it is refused.
        is_loss: it is refused and says what the run minimises: without it there is no such run.
    """

    key: str
    value: Any
    is_default: bool
    is_same: bool = False
    written: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    remedy: str = ""
    is_loss: bool = False

    @property
    def kind(self) -> str:
        """ "refused", "default", "same", "translated" or "left out"."""
        if self.remedy:
            return "refused"
        if not self.written:
            return "left out"
        if self.is_default:
            return "default"
        return "same" if self.is_same else "translated"


def _as_mapping(text: str) -> Any:
    """The mapping that a text is, or the text, which is then refused."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


class Draft:
    """One config on its way to prefkit's options.

    Args:
        given: key → value of the file, or of a mapping in it.
        defaults: what the trainer takes for keys that are not there.
        command: whose options are written.
        outer: of a mapping within a config, the draft of that.
        label: what its keys are called after, such as `datasets[0].`.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        defaults: Mapping[str, Any],
        command: Command,
        outer: "Draft | None" = None,
        label: str = "",
    ) -> None:
        self.given, self.values = given, {**given}
        self.values |= {key: value for key, value in defaults.items() if key not in given}
        self.command, self.label = command, label
        self.lines: list[Line] = [] if outer is None else outer.lines
        self.options: dict[str, Any] = {} if outer is None else outer.options
        # option → its value and the key that means it, defaults included
        self._meant: dict[str, tuple[Any, str]] = {} if outer is None else outer._meant
        self._open = dict.fromkeys(self.values)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The key's value, the trainer's default, or `default` where it has none."""
        return self.values.get(key, default)

    def open_keys(self) -> Iterator[str]:
        """The keys that are not accounted for yet, one after the other."""
        while self._open:
            yield next(iter(self._open))

    def open_keys_of(self, wanted: Callable[[str], bool]) -> list[str]:
        """The keys that are not accounted for yet and are wanted."""
        return [key for key in self._open if wanted(key)]

    def is_open(self, key: str) -> bool:
        """Whether the key is there and not accounted for."""
        return key in self._open

    def has(self, option: str) -> bool:
        """Whether prefkit has the option."""
        return option in self.command.fields

    def may_be_null(self, option: str) -> bool:
        """Whether prefkit's option takes null."""
        return types.NoneType in kinds_of(self.command.fields[option][1])

    def write(
        self, key: str, options: Mapping[str, Any], why: str = "", is_loss: bool = False
    ) -> None:
        """The key becomes these options; where one of them cannot be, it is refused.

        Args:
            why: what differs all the same.
            is_loss: as in `Line`.
        """
        found = {}
        for name, value in options.items():
            if not self.has(name):
                remedy = "Remove it, if the run can do without."
                return self.refuse(key, "prefkit has no option for it", remedy, is_loss)
            try:
                found[name] = typed(self.command, name, value)
            except ConfigError as error:
                why = f"{error}".rstrip(".")
                return self.refuse(key, why, "Correct the value, or remove it.", is_loss)
            meant, before = self._meant.get(name, (found[name], key))
            if meant != found[name] and key not in self.given and not self.label:
                return self.leave(key, f"{before} says otherwise")
            if meant != found[name]:
                return self.refuse(key, f"{before} means another {name}", _KEEP_ONE)
        self._meant.update({name: (value, self.label + key) for name, value in found.items()})
        if key not in self.given:
            found = {name: value for name, value in found.items() if not self._is_so(name, value)}
        self.options.update(found)
        same = dict(options) == {key: self.values[key]}
        self._account(key, written=found, why=why, is_same=same)
        return None

    def extend(self, key: str, option: str, more: list | dict, why: str = "") -> None:
        """The key adds to an option that is a list, where it must not be null, or a mapping."""
        if isinstance(more, list) and None in more:
            return self.refuse(key, "it is missing", "Give it.")
        before: Any = self.options.get(option)
        if isinstance(more, list):
            self.options[option] = [*(before or []), *more]
        else:
            self.options[option] = {**(before or {}), **more}
        shown = more[0] if isinstance(more, list) and len(more) == 1 else more
        self._account(key, written={option: shown}, why=why)
        return None

    def leave(self, key: str, why: str) -> None:
        """The key has no part in what is learnt, or none in this run."""
        self._account(key, why=why)

    def refuse(self, key: str, why: str, remedy: str, is_loss: bool = False) -> None:
        """The key changes what is learnt, in a way that prefkit does not."""
        self._account(key, why=why, remedy=remedy, is_loss=is_loss)

    def inner(self, key: str, defaults: Mapping[str, Any]) -> "list[Draft]":
        """Drafts of the mapping that a key holds, or of each of its list; they account for it.

        What is no mapping is refused, and what is empty left out.
        """
        value = self.values[key]
        if isinstance(value, str) and value.startswith("{"):  # as transformers takes a mapping
            value = _as_mapping(value)
        several = value if isinstance(value, list) else [value] if value else []
        if not several:
            self.leave(key, "it is empty")
            return []
        if not all(isinstance(one, Mapping) for one in several):
            self.refuse(key, "it is no mapping of names to values", "Correct it.")
            return []
        del self._open[key]
        is_list = isinstance(value, list)
        labels = [f"{key}[{place}]." if is_list else f"{key}." for place in range(len(several))]
        return [
            Draft(one, defaults, self.command, self, self.label + label)
            for one, label in zip(several, labels, strict=True)
        ]

    def _is_so(self, name: str, value: Any) -> bool:
        """Whether an option is what it is to be, without a word: by default, or by another key."""
        ours = self.options.get(name, default_of(self.command.fields[name][0]))
        return value == ours or (value is False and ours is None)

    def _account(self, key: str, **said: Any) -> None:
        del self._open[key]  # a KeyError here is a bug: accounted for twice
        given = key in self.given
        line = Line(key=self.label + key, value=self.values[key], is_default=not given, **said)
        if given or line.kind in ("default", "refused"):
            self.lines.append(line)
