"""Options of a build: defaults by method, values out of range, options that have no effect."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from prefkit.errors import ConfigError
from prefkit.pairs.fields import EVALUATE, METHOD_DEFAULTS, METHODS, BuildFields
from prefkit.pairs.pipelines.choosing import OF_A_JUDGE, check_finders


def resolve(options: BuildFields, method: str) -> BuildFields:
    """Fills in what depends on the method and checks every value.

    Raises:
        ConfigError: an option out of range, or one that the method would ignore.
    """
    for name, value in METHOD_DEFAULTS[method].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if not isinstance(options.temperature, list):
        options.temperature = [options.temperature]  # type: ignore[list-item]
    options.extra_body = _as_object(options.extra_body)
    _check_numbers(options)
    _check_temperatures(options, greedy=method == EVALUATE)
    for name in ("questions", "model", "out"):
        if not getattr(options, name):
            raise ConfigError(f"{name} is missing. {_MISSING[name]}")
    return options


def used_by(name: str, method: str) -> bool:
    """Whether an option has an effect on a method."""
    return all(method in methods for names, methods in _ONLY_FOR if name in names)


def check_ignored(given: Mapping[str, Any], method: str) -> None:
    """An option that has no effect is an error, not a silent no-op.

    Args:
        given: what the user has set.

    Raises:
        ConfigError: names the option and what it belongs to.
    """
    for name in _OF_SERVERS:
        if name in given and given.get("server") is None and given.get("judge_server") is None:
            raise ConfigError(
                f"{name} has no effect without server. Add --server, or leave it out."
            )
    for names, methods in _ONLY_FOR:
        for name in sorted(set(given) & set(names)):
            if method not in methods:
                raise ConfigError(
                    f"{name} has no effect on {method}: it belongs to {' and '.join(methods)}. "
                    "Leave it out."
                )
    check_finders(given, method)


_OF_SERVERS = ("concurrency", "timeout", "retries", "extra_body", "server_model")
_MISSING = {
    "questions": "Name a file or folder of questions, as the first word after the method.",
    "model": "Name the model that samples: --model FOLDER.",
    "out": "Name the folder of the result: --out FOLDER.",
}
_ONLY_FOR: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            *("localiser", "rollouts", "mistakes_per_question", "rectifications"),
            *("pairs_per_mistake",),
        ),
        ("step-dpo",),
    ),
    (("process_filter", *OF_A_JUDGE), METHODS),
    (("pairs_per_question",), ("dpo", "scdpo")),
    (("max_samples", "wrong_per_question", "rising"), ("scdpo",)),
    (("interpreter",), ("dpo", "scdpo", EVALUATE)),
    (("weigh",), ("cdpo",)),
    (tuple(f.name for f in fields(BuildFields) if f.name.startswith("contrast_")), ("cdpo",)),
    (("shard", "join"), METHODS),
)
_AT_LEAST_ONE = (
    *("max_questions", "batch_size", "concurrency", "samples", "max_tokens", "grading_workers"),
    *(
        "judge_max_tokens",
        "rollouts",
        "mistakes_per_question",
        "rectifications",
        "pairs_per_mistake",
    ),
    *("pairs_per_question", "max_samples", "wrong_per_question"),
    *("contrast_lora_r", "contrast_lora_alpha", "contrast_batch_size"),
    "contrast_device_batch_size",
)


def _check_numbers(options: BuildFields) -> None:
    for name in _AT_LEAST_ONE:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be 1 or more.")
    for name in ("timeout", "grading_seconds", "contrast_learning_rate", "contrast_epochs"):
        if not getattr(options, name) > 0:
            raise ConfigError(f"{name} is {getattr(options, name)}; it must be above 0.")
    if options.interpreter != "none" and options.stop:
        raise ConfigError("stop texts would cut code anywhere. Leave stop out, or the interpreter.")
    if options.join and options.shard:
        raise ConfigError("join makes one build of all shards. Leave shard out.")
    for name in ("retries", "seed"):
        if getattr(options, name) < 0:
            raise ConfigError(f"{name} is {getattr(options, name)}; it must be 0 or more.")
    if options.top_p is None or not 0 < options.top_p <= 1:
        raise ConfigError(f"top_p is {options.top_p}; it must be in (0, 1].")
    if len(options.rising) != 3 or options.rising[0] <= 0 or options.rising[1] < 0:
        raise ConfigError(
            f"rising is {options.rising}; write first temperature, rise a round, cap: 1.1 0.05 1.4."
        )


def _as_object(extra: Any) -> dict[str, Any] | None:
    if isinstance(extra, str):
        try:
            extra = json.loads(extra)
        except ValueError as error:
            raise ConfigError(f"extra_body is no JSON ({error}).") from error
    if extra is not None and not isinstance(extra, dict):
        raise ConfigError(f'extra_body is {extra!r}; write an object such as {{"top_k": 20}}.')
    return extra


def _check_temperatures(options: BuildFields, greedy: bool) -> None:
    assert isinstance(options.temperature, list)
    if options.top_p != 1 and not any(options.temperature):
        raise ConfigError("top_p has no effect at temperature 0. Leave it out.")
    for value in options.temperature:
        if not isinstance(value, int | float) or not 0 <= value <= 5:
            raise ConfigError(f"temperature is {value!r}; it must be above 0 and at most 5.")
        if value == 0 and not (greedy and options.samples == 1):
            raise ConfigError(
                "temperature is 0: greedy solutions of a question are all the same. Take a "
                "temperature above 0, or (prefkit evaluate) one sample."
            )
