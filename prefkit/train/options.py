"""The options of a run as they were given, and `ScriptArguments` and a config made of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from prefkit.errors import ConfigError
from prefkit.loss.objectives import check_method_reads
from prefkit.options.check import check_options
from prefkit.options.secrets import without_secrets
from prefkit.train.fields import ScriptArguments

# Keywords of `from_pretrained` that are options of their own.
LOADED_BY = ("dtype", "attn_implementation", "revision")
_OF_4BIT = ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "use_bnb_nested_quant")


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
        """The given options as a config file that does the same again; see `options_file`."""
        return options_file(self.given)


def options_file(given: Mapping[str, Any]) -> str:
    """Options as a config file, without secrets; its first lines name those that were given."""
    kept, secrets = without_secrets(given)
    text = yaml.safe_dump(kept, sort_keys=True, allow_unicode=True)
    if not secrets:
        return text
    return f"# Secrets are not written down: {', '.join(secrets)}. Give them again.\n{text}"


def make_options(given: dict[str, Any], needs_data: bool = True) -> Options:
    """The options of a run, checked together.

    Args:
        given: option → value, of its field's type.
        needs_data: whether train_data must be named.

    Raises:
        ConfigError: a value out of range, an option that is missing or has no effect.
    """
    from prefkit.train.config import PreferenceConfig  # imports transformers

    given = _in_one_form(given)
    check_method_reads(given.get("method", "dpo"), given)
    own = vars(ScriptArguments())
    script = ScriptArguments(**{name: value for name, value in given.items() if name in own})
    _check_script(script, given, needs_data)
    config = PreferenceConfig(**{name: value for name, value in given.items() if name not in own})
    config.given = frozenset(given)
    asked = "eval_strategy" if config.eval_strategy != "no" else "eval_on_start"
    if not script.eval_data and (config.eval_strategy != "no" or config.eval_on_start):
        raise ConfigError(
            f"{asked} is on, but there is no eval_data. Name the file of pairs to evaluate on, or "
            f"leave {asked} out."
        )
    if script.eval_data and "eval_strategy" not in given and not config.eval_on_start:
        raise ConfigError(
            "eval_data has no effect without evaluation. Set eval_strategy to steps or epoch, or "
            "leave eval_data out."
        )
    return Options(script, config, given)


def _in_one_form(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options with those that can be said in two ways said in one.

    Raises:
        ConfigError: one of them is said in both.
    """
    found = dict(given)
    if found.pop("use_peft", False):
        if found.get("adapter") == "none":
            raise ConfigError("use_peft is true, but adapter is none. Leave one of them out.")
        found["adapter"] = "lora"
    kwargs = found.get("model_init_kwargs")
    if not isinstance(kwargs, dict):
        return found
    found["model_init_kwargs"] = kwargs = dict(kwargs)
    for name in LOADED_BY:
        if name in kwargs:
            if name in found:
                raise ConfigError(f"{name} is given twice, in model_init_kwargs too. Keep one.")
            found[name] = kwargs.pop(name)
    if not kwargs:
        del found["model_init_kwargs"]
    return found


def _check_script(script: ScriptArguments, given: Mapping[str, Any], needs_data: bool) -> None:
    check_options(script, without=() if needs_data else ("train_data",))
    if script.dtype == "float16":
        from prefkit.train.checks.options import FLOAT16

        raise ConfigError(FLOAT16)
    if script.adapter == "none":
        for name in given:
            if name.startswith("lora_") or name in ("use_dora", "use_rslora"):
                raise ConfigError(f"{name} has no effect without 'adapter: lora'. Add it.")
    targets = script.lora_target_modules
    if "lm_head" in ([targets] if isinstance(targets, str) else targets or ()):
        raise ConfigError(
            "lora_target_modules has lm_head, whose weight the loss multiplies by: an adapter on "
            "it would not be read. Leave it out; lora_modules_to_save may have it."
        )
    _check_quantised(script, given)


def _check_quantised(script: ScriptArguments, given: Mapping[str, Any]) -> None:
    from prefkit.model.loading import base_of

    if script.load_in_4bit and script.load_in_8bit:
        raise ConfigError("load_in_4bit and load_in_8bit are both on. Leave one of them out.")
    if not script.load_in_4bit and (name := next((n for n in _OF_4BIT if n in given), None)):
        raise ConfigError(f"{name} has no effect without 'load_in_4bit: true'. Add it.")
    bits = "load_in_4bit" if script.load_in_4bit else "load_in_8bit"
    if getattr(script, bits) and script.adapter == "none" and base_of(script.model) is None:
        raise ConfigError(
            f"{bits} makes weights that cannot train, so that only an adapter can. Add 'adapter: "
            f"lora', or leave {bits} out."
        )
