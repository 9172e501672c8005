"""Checks of options that their own fields ask for: types, choices, ranges, and no effect.

Every message has one form: `NAME is VALUE; it must be …`.
"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterable
from typing import Any

from prefkit.errors import ConfigError
from prefkit.options.option import Rules, choices_of, default_of, rules_of


def check_options(
    options: Any, classes: Iterable[type] | None = None, without: Iterable[str] = ()
) -> None:
    """Refuses values that the fields of a dataclass do not allow.

    Args:
        options: an instance.
        classes: dataclasses that it inherits from, whose fields are looked at; None = its own.
        without: fields that are not looked at.

    Raises:
        ConfigError: a number of another type, text that is none of the choices, a number out of
            range, an option without the value that it needs.
    """
    for cls in (type(options),) if classes is None else classes:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name not in without:
                check_option(field, hints[field.name], getattr(options, field.name))


def check_option(field: dataclasses.Field, hint: Any, value: Any) -> None:
    """Refuses a value that one field does not allow; see `check_options`."""
    rules = rules_of(field)
    if rules.missing and not value:
        raise ConfigError(f"{field.name} is missing. {rules.missing}")
    if value is None and default_of(field) is None:
        return
    several = isinstance(value, list | tuple) and list in _origins(hint)
    if choices := choices_of(field, hint):
        for one in value if several else [value]:
            if one not in choices:
                raise refusal(field.name, one, f"one of {', '.join(nearest_first(one, choices))}")
        return
    _check_plain(field.name, hint, value)
    kinds = _number_kinds(hint)
    for one in value if several else [value]:
        if kinds and not _is_number(one, kinds):
            what = "a number" if float in kinds else "a whole number"
            raise ConfigError(
                f"{field.name} is {one!r}, a {type(one).__name__}; it must be {what}."
            )
        if not isinstance(one, bool) and isinstance(one, numbers.Real) and not _within(one, rules):
            left_out = ", or left out" if default_of(field) is None else ""
            raise refusal(field.name, one, in_words(rules) + left_out)


def _check_plain(name: str, hint: Any, value: Any) -> None:
    """A switch is a bool and a text is a string: "false" in a switch's place would be true."""
    parts = {part for part in _parts(hint) if part is not type(None)}
    for kind, wanted in ((bool, "true or false"), (str, "text")):
        if parts == {kind} and not isinstance(value, kind):
            raise ConfigError(
                f"{name} is {value!r}, a {type(value).__name__}; it must be {wanted}."
            )


def refusal(name: str, value: Any, wanted: str) -> ConfigError:
    """The one form in which an option's value is refused."""
    return ConfigError(f"{name} is {value!r}; it must be {wanted}.")


def nearest_first(value: Any, choices: Iterable[Any]) -> list[str]:
    """The choices as text: those that look like the value, then the others in their own order."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
    return [*near, *(name for name in names if name not in near)]


def changed(options: Any, cls: type) -> dict[str, Any]:
    """Name → value of the fields of a dataclass that differ from their defaults."""
    values = {field: getattr(options, field.name) for field in dataclasses.fields(cls)}
    return {field.name: v for field, v in values.items() if v != default_of(field)}


def no_effect(name: str, value: Any, method: str, readers: Iterable[str]) -> ConfigError:
    """The refusal of an option that the method would ignore, with the methods that read it."""
    *others, last = readers
    belongs = f"{', '.join(others)} and {last}" if others else last
    return ConfigError(
        f"{name}={value!r} has no effect with method '{method}': it belongs to {belongs}. Remove "
        "it, or choose a method that reads it."
    )


def in_words(rules: Rules) -> str:
    """The range of a number: "a positive number", "0 or more", "in [0, 0.5)"."""
    low = rules.above if rules.above is not None else rules.at_least
    high = rules.below if rules.below is not None else rules.at_most
    if high is not None:
        opening = "(" if rules.above is not None or low is None else "["
        closing = ")" if rules.below is not None else "]"
        return f"in {opening}{'-inf' if low is None else f'{low:g}'}, {high:g}{closing}"
    if rules.above is not None:
        return "a positive number" if rules.above == 0 else f"above {rules.above:g}"
    return "a finite number" if low is None else f"{low:g} or more"


def _within(value: Any, rules: Rules) -> bool:
    return (
        math.isfinite(value)
        and (rules.above is None or value > rules.above)
        and (rules.at_least is None or value >= rules.at_least)
        and (rules.below is None or value < rules.below)
        and (rules.at_most is None or value <= rules.at_most)
    )


def _parts(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _origins(hint: Any) -> set[Any]:
    return {typing.get_origin(part) for part in _parts(hint)}


def _number_kinds(hint: Any) -> set[type]:
    """int or float where an option is a number, or a list of them, and nothing else."""
    parts = [part for part in _parts(hint) if part is not type(None)]
    inner = [typing.get_args(p)[0] if typing.get_origin(p) is list else p for p in parts]
    kinds = {part for part in inner if isinstance(part, type)}
    return kinds if kinds and kinds <= {int, float} and len(inner) == len(parts) else set()


def _is_number(value: Any, kinds: set[type]) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, numbers.Real if float in kinds else numbers.Integral)
