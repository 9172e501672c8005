"""A value of a YAML file or the words of a flag → the type that a field's annotation asks for."""

import types
import typing
from enum import Enum
from typing import Any, Literal, Union

import yaml

from prefkit.errors import ConfigError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NONE = ("none", "null", "~", "")
_IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_IN_WORDS |= {list: "a list", dict: "a mapping", types.NoneType: "null"}
_IN_HELP = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT", list: "…", dict: "JSON"}
_READ_FIRST = (types.NoneType, bool, int, float, dict, list, str)  # text is anything


def coerce(name: str, value: Any, hint: Any) -> Any:
    """A value of a YAML file or of a flag as the type a field wants.

    Args:
        name: the option's, for the message.
        value: of YAML; of a flag its text, or several in a list.
        hint: the field's resolved annotation.

    Raises:
        ConfigError: it cannot be read as that type.
    """
    kinds = kinds_of(hint)
    if choices := kinds.get(Literal):
        if value is False and "no" in choices:
            return "no"  # YAML reads a bare no as false: eval_strategy: no
        text = value if value is None or isinstance(value, str) else str(value).lower()
        if text in choices:
            return text
        if types.NoneType in kinds and str(text).lower() in _NONE:
            return None
        raise ConfigError(f"{name} is {value!r}; it must be one of: {', '.join(choices)}.")
    if type(value) in kinds and not isinstance(value, str | list):
        return value
    for kind in _READ_FIRST:
        if kind in kinds:
            try:
                return _read(name, value, kind, kinds)
            except ConfigError:
                raise  # of one in a list
            except (ValueError, yaml.YAMLError):
                continue
    names = " or ".join(sorted(_IN_WORDS.get(kind, kind.__name__) for kind in kinds))
    raise ConfigError(f"{name} is {value!r}; it must be {names}.")


def kinds_of(hint: Any) -> dict[Any, Any]:
    """The plain types that an annotation allows.

    Returns:
        type → its own annotation, such as list → list[float]; Literal → all choices.
    """
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = [kinds_of(part) for part in typing.get_args(hint)]
        found = {kind: own for part in parts for kind, own in part.items()}
        if Literal in found:
            found[Literal] = sum((part.get(Literal, ()) for part in parts), ())
        return found
    if origin is Literal:
        return {Literal: typing.get_args(hint)}
    if origin in (list, dict):
        return {origin: hint}
    if not isinstance(hint, type):
        return {str: str}
    if issubclass(hint, Enum):
        return {Literal: tuple(one.value for one in hint)}
    return {hint: hint}


def metavar(hint: Any, choices: tuple[Any, ...]) -> str:
    """What stands for a flag's value in the help: the choices, or the types."""
    if choices:
        return "{" + ",".join(str(choice) for choice in choices if choice is not None) + "}"
    kinds = kinds_of(hint)
    names = [_IN_HELP[kind] for kind in _IN_HELP if kind in kinds and kind is not list]
    if list in kinds:
        inner = metavar((typing.get_args(kinds[list]) or (str,))[0], ())
        names = [name for name in names if name != inner] + [f"{inner} …"]
    return "|".join(names) or "VALUE"


def is_switch_word(word: str) -> bool:
    """Whether a word says true or false."""
    return word.lower() in (*_TRUE, *_FALSE)


def _read(name: str, value: Any, kind: type, kinds: dict[Any, Any]) -> Any:
    """A value as one kind.

    Raises:
        ValueError: it is not one.
    """
    text = value.lower() if isinstance(value, str) else None
    if kind is types.NoneType and (value is None or text in (_NONE[:2] if str in kinds else _NONE)):
        return None
    if kind is bool and text in _TRUE + _FALSE:
        return text in _TRUE
    if kind in (int, float) and not isinstance(value, bool):
        if isinstance(value, str):
            return kind(value)
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            return int(value)
    if kind in (dict, list) and text and text[0] in "[{":
        if isinstance(found := yaml.safe_load(value), kind):
            return found
    elif kind is list and isinstance(value, list):
        inner = (typing.get_args(kinds[list]) or (str,))[0]
        return [coerce(name, one, inner) if isinstance(one, str) else one for one in value]
    elif kind is list and isinstance(value, str) and str not in kinds:
        return _read(name, [value], list, kinds)
    if kind is str:
        if isinstance(value, str):
            return value
        if value is False:
            return "no"  # YAML reads a bare no as false: eval_strategy: no
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    raise ValueError
