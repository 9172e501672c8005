"""A run may be resumed with other logging or more steps, but not as another run.

What was given to the run is in its `prefkit_config.yaml`. An option that decides what is learnt
must be the same when it goes on; any other may change, and the change is told.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from prefkit.errors import ConfigError
from prefkit.loss.objectives import METHODS, LossOptions
from prefkit.options.option import former_names, rules_of
from prefkit.options.secrets import without_secrets
from prefkit.options.yaml_file import read_yaml
from prefkit.train.checkpointing import checkpoint
from prefkit.train.fields import PreferenceFields, ScriptArguments
from prefkit.train.options import Options

CONFIG_FILE = "prefkit_config.yaml"
_FIXED = (  # of transformers.TrainingArguments
    *("gradient_accumulation_steps", "seed", "data_seed", "bf16", "fp16", "optim", "optim_args"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha"),
)
_SILENT = ("resume_from_checkpoint", "output_dir")


def check_same_run(options: Options, say: Callable[[str], None]) -> None:
    """Compares the options with those of the run that is resumed, if one is.

    Args:
        options: of this start.
        say: receives one line that lists the changes that are allowed.

    Raises:
        ConfigError: an option that decides what is learnt has changed; nothing has been written.
    """
    folder = _resumed(options.config)
    if folder is None or not (folder / CONFIG_FILE).is_file():
        return
    renamed = former_names(PreferenceFields, ScriptArguments)
    # Secrets are not kept, and are no part of what is learnt.
    old, _ = without_secrets(read_yaml(str(folder / CONFIG_FILE)))
    old = {renamed.get(k, k): v for k, v in old.items()}
    given, _ = without_secrets(options.given)
    defaults = _defaults(options.config)
    then, now = _effective(old, defaults), _effective(given, defaults)
    own = [*fields(PreferenceFields), *fields(ScriptArguments)]
    fixed = {*_FIXED, *(field.name for field in own if not rules_of(field).free)}
    names = sorted(name for name in {*old, *given} if name not in _SILENT)
    changed = [name for name in names if then.get(name) != now.get(name)]
    lines = [f"{name} {_shown(then.get(name))} → {_shown(now.get(name))}" for name in changed]
    refused = [line for name, line in zip(changed, lines, strict=True) if name in fixed]
    if refused:
        raise ConfigError(
            f"resume_from_checkpoint: {folder} was trained with other options: {'; '.join(refused)}"
            ". Give the old values to go on, or choose another output_dir for a new run."
        )
    if lines:
        say(f"Changed since the run was started: {'; '.join(lines)}.")


def _resumed(config: Any) -> Path | None:
    """The folder of the run that this start goes on with."""
    request = config.resume_from_checkpoint
    if not request or str(request).lower() in ("false", "none"):
        return None
    output = Path(config.output_dir)
    if str(request).lower() in ("true", "auto"):
        return output if checkpoint.newest_complete(output)[0] else None
    return Path(request).absolute().parent


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _defaults(config: Any) -> dict[str, Any]:
    found = {}
    for field in (*fields(config), *fields(ScriptArguments)):
        if field.default is not MISSING:
            found[field.name] = field.default
    return found


def _effective(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All options with their defaults, in one way of writing each."""
    values = {**defaults, **given}
    objective = METHODS[values["method"]].build(values)
    for field in fields(LossOptions):
        values[field.name] = getattr(objective, field.name, None)
    values["use_weighting"] = values["pair_weights"] == "wpo"  # two names of one option
    for name in ("model", "ref_model", "tokenizer", "train_data", "eval_data"):
        value = values.get(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        values[name] = [str(Path(x).absolute()) if Path(x).exists() else x for x in items]
    return values
