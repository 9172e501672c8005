"""What a table of another trainer may say of a key; and what it is, as a hint to a user."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefkit.convert.draft import Draft


class Rule(Protocol):
    """What becomes of a key.

    Attributes:
        hint: what to do about the key where an option of prefkit is expected.
    """

    @property
    def hint(self) -> str: ...

    def apply(self, draft: Draft, key: str) -> None:
        """Accounts for the key."""


@dataclass(frozen=True)
class To:
    """Another name for the same thing.

    Attributes:
        option: prefkit's name.
        words: their value → ours, where they differ.
        off: values that mean the same as leaving it out, also where prefkit lacks the option.
        why: what differs all the same.
    """

    option: str
    words: Mapping[Any, Any] = field(default_factory=dict)
    off: tuple[Any, ...] = (None,)
    why: str = ""

    @property
    def hint(self) -> str:
        return f"Use {self.option}."

    def apply(self, draft: Draft, key: str) -> None:
        value, there = draft[key], draft.has(self.option)
        if isinstance(value, Hashable) and value in self.words:
            draft.write(key, {self.option: self.words[value]}, self.why)
        elif not there and any(value == one for one in self.off):
            draft.leave(key, "it is off")
        elif value is None and there and not draft.may_be_null(self.option):
            draft.leave(key, "it is empty")
        else:
            draft.write(key, {self.option: value}, self.why)


@dataclass(frozen=True)
class Same:
    """The same name, and the same meaning.

    Attributes:
        off: as in `To`.
    """

    off: tuple[Any, ...] = (None,)

    hint = "prefkit has it too, in PreferenceConfig."

    def apply(self, draft: Draft, key: str) -> None:
        To(key, off=self.off).apply(draft, key)


@dataclass(frozen=True)
class Left:
    """No part in what is learnt.

    Attributes:
        why: reason, a clause.
    """

    why: str

    @property
    def hint(self) -> str:
        return f"Leave it out: {self.why}."

    def apply(self, draft: Draft, key: str) -> None:
        draft.leave(key, self.why)


@dataclass(frozen=True)
class Refused:
    """Something that prefkit does not do; values that ask for nothing are left out.

    Attributes:
        why: reason, a clause.
        remedy: what to do instead, a sentence.
        off: values that ask for nothing.
    """

    why: str
    remedy: str = "Remove it, if the run can do without."
    off: tuple[Any, ...] = (None, False)

    @property
    def hint(self) -> str:
        return f"{self.remedy.rstrip('.')}: {self.why}."

    def apply(self, draft: Draft, key: str) -> None:
        if any(draft[key] == one for one in self.off):
            draft.leave(key, "it asks for nothing")
        else:
            draft.refuse(key, self.why, self.remedy)


@dataclass(frozen=True)
class By:
    """Something that several keys say together.

    Attributes:
        function: accounts for all of them.
        hint: what to do about the key where an option of prefkit is expected.
    """

    function: Callable[[Draft], None]
    hint: str

    def apply(self, draft: Draft, key: str) -> None:
        self.function(draft)


def each(rule: Rule, names: str) -> dict[str, Rule]:
    """The same rule for several keys, written with spaces between them."""
    return dict.fromkeys(names.split(), rule)


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Another trainer.

    Attributes:
        name: for `--from`.
        title: as it writes itself.
        version: whose names and defaults these are.
        rules: key → its rule.
        defaults: key → what the trainer takes where it is missing; those of all keys that rules
            read together.
        needs: a config that has none of these keys is not the trainer's.
        inherits: whether it takes every field of `transformers.TrainingArguments`.
        families: how keys of its plugins begin → their rule.
    """

    name: str
    title: str
    version: str
    rules: Mapping[str, Rule]
    defaults: Mapping[str, Any]
    needs: tuple[str, ...]
    inherits: bool
    families: Mapping[str, Rule] = field(default_factory=dict)

    def rule_of(self, key: str) -> Rule | None:
        """The rule of a key; None where the tables do not have it."""
        if key in self.rules:
            return self.rules[key]
        return next((rule for start, rule in self.families.items() if key.startswith(start)), None)
