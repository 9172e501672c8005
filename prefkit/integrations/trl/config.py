"""TRL's `DPOConfig` with the few options that prefkit adds, and how they are read of any config."""

from dataclasses import dataclass, field
from typing import Any

import trl

from prefkit.errors import ConfigError

METHODS = ("dpo", "tdpo1", "tdpo2")
ENDS = ("auto", "always", "never")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What prefkit adds to TRL's options.

    Attributes:
        method: "dpo": TRL's `loss_type` says the rest; "tdpo1", "tdpo2": see `prefkit.TDPO`.
        alpha: α of tdpo2.
        append_eos: which completions in the standard format get an end-of-sequence token.
        memory_budget: bytes for buffers of logits in the fused head; None = a sensible default.
    """

    method: str = "dpo"
    alpha: float = 0.5
    append_eos: str = "auto"
    memory_budget: int | None = None

    @classmethod
    def of(cls, args: Any) -> "Settings":
        """Those of a config; of one without them (TRL's own) the defaults.

        Raises:
            ConfigError: a value that is none of an option's.
        """
        settings = cls(
            method=getattr(args, "prefkit_method", "dpo"),
            alpha=getattr(args, "prefkit_alpha", 0.5),
            append_eos=getattr(args, "append_eos", "auto"),
            memory_budget=getattr(args, "prefkit_memory_budget", None),
        )
        for option, value, allowed in (
            ("prefkit_method", settings.method, METHODS),
            ("append_eos", settings.append_eos, ENDS),
        ):
            if value not in allowed:
                raise ConfigError(f"{option} is {value!r}; it is one of {', '.join(allowed)}.")
        budget = settings.memory_budget
        if budget is not None and budget < 1:
            raise ConfigError(f"prefkit_memory_budget is {budget}; it is a number of bytes, ≥ 1.")
        return settings


@dataclass
class DPOConfig(trl.DPOConfig):
    """TRL's `DPOConfig`, with prefkit's options beside TRL's.

    Args:
        prefkit_method: "dpo" (TRL's `loss_type` names the loss), "tdpo1" or "tdpo2" (token-level
            DPO with the full-vocabulary KL, arXiv 2404.11999; `loss_type` stays "sigmoid").
        prefkit_alpha: α of tdpo2.
        append_eos: which completions of the standard format get an end-of-sequence token: "auto"
            (all but those of rows with a `prefix` or `initial_reason_steps`, which are steps),
            "always" (as TRL does) or "never". A row's own `append_eos` goes before.
        prefkit_memory_budget: bytes for buffers of logits in the fused head; None = a sensible
            default.
    """

    prefkit_method: str = field(
        default="dpo",
        metadata={
            "help": "The method: dpo (loss_type names the loss), or token-level DPO with the "
            "full-vocabulary KL, tdpo1 or tdpo2.",
            "choices": list(METHODS),
        },
    )
    prefkit_alpha: float = field(
        default=0.5, metadata={"help": "Weight of the sequential KL term of tdpo2."}
    )
    append_eos: str = field(
        default="auto",
        metadata={
            "help": "Which completions of the standard format get an end-of-sequence token: auto "
            "(all but those of rows with a prefix, which are steps), always (as TRL does), never.",
            "choices": list(ENDS),
        },
    )
    prefkit_memory_budget: int | None = field(
        default=None,
        metadata={"help": "Bytes for buffers of logits in the fused head; None = a default."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Settings.of(self)
