"""Options of a build: defaults by method, values out of range, options that have no effect."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from prefkit.errors import ConfigError
from prefkit.options.check import check_options
from prefkit.options.option import rules_of
from prefkit.pairs.fields import EVALUATE, METHODS, BuildFields
from prefkit.pairs.pipelines.choosing import check_finders

_RULES = {field.name: rules_of(field) for field in dataclasses.fields(BuildFields)}
# Options that a finished part of a build does not depend on.
FREE = tuple(name for name, rules in _RULES.items() if rules.free)
# Limits that are left out (None): with pairs "one", and with all pairs.
_LIMITS = {
    "mistakes_per_question": (2, 8),
    "pairs_per_mistake": (1, None),
    "pairs_per_question": (1, None),
}
_OF_SERVERS = ("concurrency", "timeout", "retries", "extra_body", "server_model")


def check_method(method: str) -> None:
    """Raises ConfigError for a method that is none of `METHODS`."""
    if method not in METHODS:
        raise ConfigError(
            f"'{method}' is no method of building. Choose one of: {', '.join(METHODS)} (tdpo "
            "trains on the pairs of dpo)."
        )


def resolved(method: str, given: Mapping[str, Any]) -> BuildFields:
    """The options of a build from what the user has set; see `resolve`.

    Raises:
        ConfigError: an option that there is not, is out of range, or has no effect.
    """
    unknown = sorted(set(given) - set(_RULES))
    if unknown:
        raise ConfigError(f"there is no option '{unknown[0]}' of a build. See BuildFields.")
    check_ignored(given, method)
    return resolve(BuildFields(**given), method)


def resolve(options: BuildFields, method: str) -> BuildFields:
    """Fills in what depends on the method and checks every value.

    Raises:
        ConfigError: an option out of range.
    """
    for name, rules in _RULES.items():
        if getattr(options, name) is None and method in rules.by_method:
            setattr(options, name, copy.deepcopy(rules.by_method[method]))
    for name, (with_one, with_all) in _LIMITS.items():
        if getattr(options, name) is None:
            setattr(options, name, with_one if options.pairs == "one" else with_all)
    if not isinstance(options.temperature, list):
        options.temperature = [options.temperature]  # type: ignore[list-item]
    options.extra_body = _as_object(options.extra_body)
    check_options(options)
    _check_together(options)
    _check_temperatures(options, greedy=method == EVALUATE)
    return options


def used_by(name: str, method: str) -> bool:
    """Whether an option has an effect on a method."""
    readers = _RULES[name].only_for
    return readers is None or method in readers


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
    for name in sorted(given):
        if not used_by(name, method):
            readers = " and ".join(_RULES[name].only_for or ())
            raise ConfigError(
                f"{name} has no effect on {method}: it belongs to {readers}. Leave it out."
            )
    check_finders(given, method)
    if given.get("pairs") != "several":
        return
    if method != "dpo":
        raise ConfigError(
            f"pairs: several has no effect on {method}: it belongs to dpo. Say pairs: all, which "
            "makes a row of every pair."
        )
    if given.get("pairs_per_question") is not None:
        raise ConfigError(
            "pairs_per_question has no effect with pairs several: a row has all wrong solutions. "
            "Leave it out, or say pairs: all."
        )


def _check_together(options: BuildFields) -> None:
    if options.interpreter != "none" and options.stop:
        raise ConfigError("stop texts would cut code anywhere. Leave stop out, or the interpreter.")
    if options.join and options.shard:
        raise ConfigError("join makes one build of all shards. Leave shard out.")
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
    if 0 in options.temperature and not (greedy and options.samples == 1):
        raise ConfigError(
            "temperature is 0: greedy solutions of a question are all the same. Take a temperature "
            "above 0, or (prefkit evaluate) one sample."
        )
