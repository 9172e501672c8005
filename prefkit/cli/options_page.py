"""The page docs/options.md, from the options' own fields.

python -m prefkit.cli.options_page > docs/options.md
"""

import dataclasses
import sys
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from prefkit.critical_tokens.fields import ScoreFields
from prefkit.loss.objectives import METHODS, LossOptions
from prefkit.options.check import in_words
from prefkit.options.option import Rules, choices_of, default_of, field_docs, rules_of
from prefkit.pairs.fields import BuildFields
from prefkit.train.fields import PreferenceFields, ScriptArguments, SupervisedFields

_HEAD = """\
# Options

Made by `python -m prefkit.cli.options_page` from the fields that the commands themselves read.
Each is a flag (`--name value`) and, in `train`, `build` and `evaluate`, a key of the YAML file.
Every other field of `transformers.TrainingArguments` is an option of a training run as well. Flags
that only steer a command (`--json`, `--limit`, `--gpus`, …) are in its `--help`. "–" as a default:
nothing, or what the text says. **Free**: may change when a run is resumed, because it does not
decide what is learnt; any other change is refused by name. Questions and model of a build may lie
elsewhere, but must be the same.
"""
_NAMES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
_NAMES |= {"dict": "mapping", "list": "list"}


def page() -> str:
    """The whole page."""
    sections = [
        ("`prefkit train`", (ScriptArguments, PreferenceFields)),
        ("`SupervisedConfig`", (SupervisedFields,)),
        ("`prefkit build`, `prefkit evaluate`", (BuildFields,)),
        ("`prefkit score`", (ScoreFields,)),
    ]
    return "\n".join([_HEAD, *(_section(title, classes) for title, classes in sections)])


def _section(title: str, classes: Sequence[type]) -> str:
    lines = [f"## {title}", "", "| option | values | default | |", "| --- | --- | --- | --- |"]
    for cls in classes:
        hints, docs = typing.get_type_hints(cls), field_docs(cls)
        for field in dataclasses.fields(cls):
            cells = (
                f"`{field.name}`",
                _values(field, hints[field.name]),
                _default(field, cls),
                f"{docs[field.name]}{_notes(field, cls)}",
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _values(field: dataclasses.Field, hint: Any) -> str:
    if choices := choices_of(field, hint):
        return ", ".join(f"`{choice}`" for choice in choices)
    kinds = [hint, *typing.get_args(hint)]
    names = [_NAMES[kind.__name__] for kind in kinds if getattr(kind, "__name__", "") in _NAMES]
    limits = dataclasses.replace(rules_of(field), free=False, formerly=None, only_for=None)
    kind = " or ".join(dict.fromkeys(names))
    return f"{kind}: {in_words(limits)}" if _limited(limits) else kind


def _limited(rules: Rules) -> bool:
    limits = (rules.above, rules.at_least, rules.below, rules.at_most)
    return any(limit is not None for limit in limits)


def _of_loss(field: dataclasses.Field, cls: type) -> bool:
    return issubclass(cls, LossOptions) and field.name in LossOptions.__dataclass_fields__


def _default(field: dataclasses.Field, cls: type) -> str:
    if _of_loss(field, cls):
        return _by_method(field.name)
    if by_method := rules_of(field).by_method:
        return "; ".join(f"{method}: {_shown(value)}" for method, value in by_method.items())
    return _shown(default_of(field))


def _by_method(name: str) -> str:
    """The values of a loss's option that is left out, those of most methods first."""
    found: dict[str, list[str]] = {}
    for method, what in METHODS.items():
        if name in what.reads:
            found.setdefault(_shown(getattr(what.build({}), name)), []).append(method)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{_names(methods)}: {value}" for value, methods in found.items())


def _notes(field: dataclasses.Field, cls: type) -> str:
    rules = rules_of(field)
    readers: Iterable[str] = rules.only_for or ()
    if _of_loss(field, cls):
        readers = [name for name, method in METHODS.items() if field.name in method.reads]
        readers = () if len(list(readers)) == len(METHODS) else readers
    notes = [f"Read by {_names(readers)}."] if readers else []
    return "".join(f" {note}" for note in [*notes, *(["**Free.**"] if rules.free else [])])


def _names(methods: Iterable[str]) -> str:
    return ", ".join(f"`{method}`" for method in methods)


def _shown(value: Any) -> str:
    if value is None or value in ("", [], {}) or value is dataclasses.MISSING:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(page())
