"""A YAML file and flags → `ScriptArguments` and `PreferenceConfig`, every mistake named.

A flag is a field's name (`--learning_rate 1e-6`, `--learning-rate=1e-6`) and wins over the YAML. A
flag without a value means true; several values make a list.
"""

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

import yaml

from prefkit.errors import ConfigError
from prefkit.options.check import check_option
from prefkit.train.fields import PreferenceFields, ScriptArguments

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NONE = ("none", "null", "~", "")


_AROUND = ("joiner", "opening", "prompt_template", "stop", "system_prompt")
_ELSEWHERE = {  # names of other libraries
    "loss_type": "Use method (dpo, tdpo2, simpo, …) and link (sigmoid, ipo, hinge, robust).",
    "model_name_or_path": "Use model.",
    "dataset_name": "Use train_data.",
    "eval_dataset": "Use eval_data.",
    "use_peft": "Use adapter: lora.",
}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: '{key}' is given twice. Keep one of the two.")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> dict[str, Any]:
    """The options of a YAML file.

    Raises:
        ConfigError: no such file, not UTF-8, not YAML, not a mapping, or a key given twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path}: must hold one 'option: value' a line.")
    return content


def split_flags(tokens: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Words before the first flag, and each flag's values.

    Raises:
        ConfigError: a flag given twice, or a single dash.
    """
    words: list[str] = []
    flags: dict[str, list[str]] = {}
    current = words
    for token in tokens:
        if not token.startswith("--"):
            if len(token) > 1 and token[0] == "-" and token[1].isalpha():
                raise ConfigError(f"'{token}': flags start with two dashes, such as --{token[1:]}.")
            current.append(token)
            continue
        name, equals, value = token[2:].partition("=")
        name = name.replace("-", "_")
        if name in flags:
            raise ConfigError(f"--{name} is given twice. Keep one of the two.")
        current = flags[name] = [value] if equals else []
    return words, flags


def coerce(name: str, value: Any, hint: Any) -> Any:
    """A value of a YAML file or of a flag as the type a field wants.

    Raises:
        ConfigError: it cannot be read as that type.
    """
    kinds, choices = _kinds(hint)
    if choices:
        text = value if value is None or isinstance(value, str) else str(value).lower()
        if text in choices:
            return text
        if None in choices and str(text).lower() in _NONE:
            return None
        offered = ", ".join(str(choice) for choice in choices if choice is not None)
        raise ConfigError(f"{name} is {value!r}; it must be one of: {offered}.")
    if value is None or (isinstance(value, str) and value.lower() in _NONE and str not in kinds):
        if type(None) in kinds:
            return None
    elif isinstance(value, str):
        for kind in (bool, int, float, dict, list):
            if kind in kinds and (found := _from_text(value, kind)) is not None:
                return found
        if str in kinds:
            return None if type(None) in kinds and value.lower() in _NONE[:2] else value
        if list in kinds:
            return [value]
    elif isinstance(value, bool):
        if bool in kinds:
            return value
        if str in kinds and value is False:
            return "no"  # YAML reads a bare no as false: eval_strategy: no
    elif isinstance(value, int | float):
        if type(value) in kinds or float in kinds:
            return value
        if int in kinds and value == int(value):
            return int(value)
        if str in kinds:
            return str(value)
    elif type(value) in kinds:
        return value
    names = " or ".join(sorted(_kind_name(kind) for kind in kinds))
    raise ConfigError(f"{name} is {value!r}; it must be {names}.")


def _kinds(hint: Any) -> tuple[set[type], tuple]:
    """The plain types a hint allows, and its choices where it is a Literal."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(hint)]
        choices = tuple(choice for part in parts for choice in part[1])
        kinds = set().union(*(part[0] for part in parts))
        return (kinds, (*choices, None) if choices and type(None) in kinds else choices)
    if origin is Literal:
        return set(), typing.get_args(hint)
    if origin in (list, dict):
        return {origin}, ()
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {str}, ()
    return ({hint} if isinstance(hint, type) else {str}), ()


def _kind_name(kind: type) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    names |= {list: "a list", dict: "a mapping", type(None): "null"}
    return names.get(kind, kind.__name__)


def _from_text(text: str, kind: type) -> Any:
    """Text as a value of one kind, or None when it is not one."""
    if kind is bool:
        return True if text.lower() in _TRUE else False if text.lower() in _FALSE else None
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return None
    if text[:1] not in "[{" or not text:
        return None
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return found if isinstance(found, kind) else None


def flag_value(values: list[str]) -> Any:
    """A flag's words as one value: none means true, several a list."""
    return "true" if not values else values[0] if len(values) == 1 else values


def unescaped(name: str, value: Any) -> Any:
    """A flag that is text around a prompt, where shells hand over "\\n" as two characters."""
    if name in _AROUND and isinstance(value, list):
        return [unescaped(name, one) for one in value]
    return value.replace("\\n", "\n") if name in _AROUND and isinstance(value, str) else value


def refuse_unknown(name: str, known: Sequence[str], where: str, command: str = "train") -> None:
    """Raises ConfigError for an option that is none of `known`, with the nearest that is."""
    if name in known:
        return
    if name in _ELSEWHERE:
        raise ConfigError(f"{where}: there is no option '{name}'. {_ELSEWHERE[name]}")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = (
        f"Did you mean '{near[0]}'?" if near else f"`prefkit {command} --help` lists the options."
    )
    raise ConfigError(f"{where}: there is no option '{name}'. {hint}")


def refuse_bare(name: str, hint: Any) -> None:
    """A flag without a value means true, where true is a value of the field."""
    if bool not in _kinds(hint)[0] and name != "resume_from_checkpoint":
        raise ConfigError(f"{name} needs a value: --{name} VALUE.")


class Options(NamedTuple):
    """What a command line asks for.

    Attributes:
        script: what to load.
        config: a `PreferenceConfig`.
        given: every option as the file and the flags gave it, in YAML's types.
    """

    script: ScriptArguments
    config: Any
    given: dict[str, Any]

    def as_yaml(self) -> str:
        """The given options as a config file that does the same again."""
        return yaml.safe_dump(self.given, sort_keys=True, allow_unicode=True)


def load_options(argv: Sequence[str]) -> Options:
    """The options of `prefkit train [CONFIG.yaml] [--field value …]`.

    Raises:
        ConfigError: anything wrong with the file, a flag, a value or their combination.
    """
    words, flags = split_flags(argv)
    if len(words) > 1:
        raise ConfigError(f"One config file, please; got {len(words)}: {', '.join(words)}.")
    content = read_yaml(words[0]) if words else {}
    from prefkit.train.config import (
        PreferenceConfig,
    )  # imports transformers: after the cheap checks

    hints = {**typing.get_type_hints(PreferenceConfig), **typing.get_type_hints(ScriptArguments)}
    known = [field.name for cls in (PreferenceConfig, ScriptArguments) for field in fields(cls)]
    own_fields = {f.name: f for cls in (PreferenceFields, ScriptArguments) for f in fields(cls)}
    values: dict[str, Any] = {}
    given: list[tuple[str, str, Any]] = [(words[0], key, value) for key, value in content.items()]
    for key, words_given in flags.items():
        given.append(("command line", key, unescaped(key, flag_value(words_given))))
    for where, key, value in given:
        key = key.replace("-", "_")
        refuse_unknown(key, known, where)
        if where == "command line" and not flags.get(key):
            refuse_bare(key, hints[key])
        try:
            values[key] = coerce(key, value, hints[key])
            if key in own_fields:
                check_option(own_fields[key], hints[key], values[key])
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    own = {field.name for field in fields(ScriptArguments)}
    script = ScriptArguments(**{key: value for key, value in values.items() if key in own})
    _check_script(script, values)
    config = PreferenceConfig(**{key: value for key, value in values.items() if key not in own})
    asked = "eval_strategy" if config.eval_strategy != "no" else "eval_on_start"
    if not script.eval_data and (config.eval_strategy != "no" or config.eval_on_start):
        raise ConfigError(
            f"{asked} is on, but there is no eval_data. Name the file of pairs to evaluate on, or "
            f"leave {asked} out."
        )
    if script.eval_data and "eval_strategy" not in values and not config.eval_on_start:
        raise ConfigError(
            "eval_data has no effect without evaluation. Set eval_strategy to steps or epoch, or "
            "leave eval_data out."
        )
    return Options(script, config, values)


def _check_script(script: ScriptArguments, given: Mapping[str, Any]) -> None:
    if not script.model:
        raise ConfigError("model is missing. Name the folder or Hub name of the model to train.")
    if not script.train_data:
        raise ConfigError("train_data is missing. Name the file(s) of preference pairs.")
    if script.dtype == "float16":
        from prefkit.train.checks.options import FLOAT16

        raise ConfigError(FLOAT16)
    if script.adapter == "none":
        for name in given:
            if name.startswith("lora_"):
                raise ConfigError(f"{name} has no effect without 'adapter: lora'. Add it.")
    if script.lora_r < 1:
        raise ConfigError(f"lora_r is {script.lora_r}; it must be 1 or more.")
