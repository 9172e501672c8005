"""A reference that follows the policy (`sync_ref_model`): what it excludes, told by name."""

import os
from typing import Any

from prefkit.errors import ConfigError
from prefkit.loss.objective import Objective
from prefkit.model.loading import base_of
from prefkit.options.option import default_of
from prefkit.train.checks.sharding import flag


def check_synced(config: Any, objective: Objective) -> None:
    """What the options alone tell.

    Raises:
        ConfigError: an option without effect, a loss that reads no reference, one that is
            precomputed, or DeepSpeed.
    """
    if not config.sync_ref_model:
        for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
            if getattr(config, name) != default_of(type(config).__dataclass_fields__[name]):
                raise ConfigError(f"{name} has no effect without 'sync_ref_model: true'. Add it.")
        return
    if not objective.needs_reference:
        raise ConfigError(
            f"sync_ref_model is on, but method '{config.method}' as configured reads no reference. "
            "Remove it."
        )
    if config.precomputes_reference:
        name = "log_probs" if config.precompute_ref_log_probs else "hidden"
        raise ConfigError(
            f"sync_ref_model moves the reference while it trains, and precompute_ref_{name} keeps "
            "what it computed before. Leave one of them out."
        )
    if config.deepspeed or flag(os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        raise ConfigError(
            "sync_ref_model and deepspeed: its engines hold policy and reference in pieces of their"
            " own. Shard with fsdp: true, or leave sync_ref_model out."
        )


def refuse_synced_adapter(args: Any, model: Any, peft_config: Any) -> None:
    """Refuses to move a reference that is the policy with another adapter, or none.

    Args:
        args: the run's options.
        model: as given to the trainer.
        peft_config: of an adapter to come, or None.

    Raises:
        ConfigError: see above.
    """
    named = isinstance(model, str) and base_of(model) is not None
    adapted = peft_config is not None or named or hasattr(model, "peft_config")
    if args.sync_ref_model and adapted:
        raise ConfigError(
            "sync_ref_model and an adapter: the reference is the model without it, or with a frozen"
            " one, on weights that stay what they are, so there is no model to move. Leave "
            "sync_ref_model out, or train the whole model."
        )
