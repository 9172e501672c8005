"""Whose config it is, and its translation into prefkit's options."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefkit.convert.draft import Draft, Line
from prefkit.convert.rules import Rule, Same, Trainer
from prefkit.convert.trainers import TRAINERS
from prefkit.convert.yaml_text import in_words
from prefkit.errors import ConfigError, PrefkitError
from prefkit.options.command import Command
from prefkit.options.secrets import hidden

_SEVERAL = ("train_data", "eval_data")
_OF_LOSS = ("method", "loss_type", "loss_weights")


@dataclass(frozen=True)
class Found:
    """The trainer of a config, and the keys by which it was told.

    Attributes:
        trainer: see `Trainer`.
        keys: that no other trainer has, nor prefkit.
    """

    trainer: Trainer
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Translation:
    """What a config of another trainer means here.

    Attributes:
        trainer: whose it is.
        options: name → value of prefkit's options, typed.
        lines: what became of each key, and the trainer's defaults that differ from prefkit's.
    """

    trainer: Trainer
    options: Mapping[str, Any]
    lines: tuple[Line, ...]

    def of_kind(self, kind: str) -> list[Line]:
        """The lines of one kind (`Line.kind`)."""
        return [line for line in self.lines if line.kind == kind]


def find_trainer(
    config: Mapping[str, Any], options: Collection[str], inherited: Collection[str]
) -> Found | None:
    """The trainer whose names a config has most of; None for one of prefkit, or of nobody known.

    A config with a name that only prefkit has is prefkit's, whatever other names are in it.

    Args:
        config: key → value.
        options: names of prefkit.
        inherited: the fields of `transformers.TrainingArguments`, which are no mark of prefkit.
    """
    known = {key for key in config if any(one.rule_of(key) for one in TRAINERS)} | {*inherited}
    if any(key in options for key in config if key not in known):
        return None
    return _most_likely(config, options)


def _most_likely(config: Mapping[str, Any], options: Collection[str]) -> Found | None:
    found: list[Found] = []
    for trainer in TRAINERS:
        others = [one for one in TRAINERS if one is not trainer]
        own = [key for key in config if trainer.rule_of(key) and key not in options]
        alone = [key for key in own if not any(one.rule_of(key) for one in others)]
        if alone and any(key in config for key in trainer.needs):
            found.append(Found(trainer, tuple(alone)))
    best = max((len(one.keys) for one in found), default=0)
    first = [one for one in found if len(one.keys) == best]
    return first[0] if len(first) == 1 else None


def named_trainer(name: str) -> Trainer:
    """A trainer by its name for `--from`.

    Raises:
        ConfigError: there is none.
    """
    for trainer in TRAINERS:
        if trainer.name == name:
            return trainer
    names = ", ".join(trainer.name for trainer in TRAINERS)
    raise ConfigError(f"from is {name!r}; it must be one of: {names}.")


def translate(
    trainer: Trainer, config: Mapping[str, Any], command: Command, inherited: Collection[str]
) -> Translation:
    """A config of another trainer as prefkit's options; every key is accounted for once.

    Args:
        trainer: whose it is.
        config: key → value of the file.
        command: whose options are written.
        inherited: the fields of `transformers.TrainingArguments`.

    Raises:
        ConfigError: a run of another kind than learning from pairs, or a value of a type that the
            trainer does not take.
    """
    draft = Draft(config, trainer.defaults, command)
    for key in draft.open_keys():
        if (rule := _rule(trainer, key, inherited)) is None:
            _unknown(draft, key, trainer, inherited)
            continue
        try:
            rule.apply(draft, key)
        except PrefkitError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            value = in_words(hidden(draft[key], key))
            raise ConfigError(
                f"{key}: {value} is nothing that {trainer.title} takes there, alone or beside the "
                f"keys that belong to it ({type(error).__name__}: {error}). Correct it."
            ) from error
    options = dict(draft.options)
    for name in _SEVERAL:
        if isinstance(options.get(name), list) and len(options[name]) == 1:
            options[name] = options[name][0]
    return Translation(trainer, options, tuple(draft.lines))


def refused(translation: Translation, option: str, words: str) -> Translation:
    """A translation without the key that became an option that no run can have.

    Where another key is refused already, without which the option has no effect, it is left out.

    Args:
        translation: as it was.
        option: of prefkit.
        words: what is wrong with it, in sentences; the first is the reason.
    """
    why, _, remedy = words.partition(". ")
    found = list(translation.lines)
    place = next(at for at, line in enumerate(found) if option in line.written)
    line = found[place]
    belongs = "has no effect without" in why and translation.of_kind("refused")
    found[place] = replace(
        line,
        written={},
        why=why.rstrip("."),
        remedy="" if belongs else remedy or "Leave it out.",
        is_loss=any(name in _OF_LOSS for name in line.written),
    )
    still = {name for line in found for name in line.written}
    options = {name: one for name, one in translation.options.items() if name in still}
    return Translation(translation.trainer, options, tuple(found))


def _rule(trainer: Trainer, key: str, inherited: Collection[str]) -> Rule | None:
    found = trainer.rule_of(key)
    return Same() if found is None and trainer.inherits and key in inherited else found


def _unknown(draft: Draft, key: str, trainer: Trainer, inherited: Collection[str]) -> None:
    why = f"{trainer.title} {trainer.version} has no such key"
    if draft[key] is None:
        return draft.leave(key, f"{why}, and it is empty")
    names = [*trainer.rules, *(inherited if trainer.inherits else ())]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    remedy = f"Did you mean '{near[0]}'?" if near else "Correct or remove it."
    return draft.refuse(key, why, remedy)
