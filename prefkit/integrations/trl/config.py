"""TRL's `DPOConfig` with the few options that prefkit adds, and how they are read of any config."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

import trl

from prefkit.errors import ConfigError

METHODS = ("dpo", "tdpo1", "tdpo2")
ENDS = ("auto", "always", "never")
LAYOUTS = ("auto", "shared", "padded")
ALPHA = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What prefkit adds to TRL's options.

    Attributes:
        method: "dpo": TRL's `loss_type` says the rest; "tdpo1", "tdpo2": see `prefkit.TDPO`.
        alpha: α of tdpo2, and of no other method; None = 0.5.
        append_eos: which completions in the standard format get an end-of-sequence token.
        layout: of what the models read.
        memory_budget: bytes for buffers of logits in the fused head; None = a sensible default.
        names: what the options are called where they were given, for messages; in a config of
            prefkit's most are not called as here.
    """

    method: str = "dpo"
    alpha: float | None = None
    append_eos: str = "auto"
    layout: str = "auto"
    memory_budget: int | None = None
    names: InitVar[Mapping[str, str] | None] = None

    @classmethod
    def of(cls, args: Any) -> "Settings":
        """Those of a config; of one without them (TRL's own) the defaults (see `patch`).

        Raises:
            ConfigError: a value that is none of an option's.
        """
        if not isinstance(args, DPOConfig):
            return _defaults[-1]
        return cls(
            method=args.prefkit_method,
            alpha=args.prefkit_alpha,
            append_eos=args.append_eos,
            layout=args.prefkit_layout,
            memory_budget=args.prefkit_memory_budget,
            names=_IN_CONFIG,
        )

    def __post_init__(self, names: Mapping[str, str] | None) -> None:
        called = {
            "append_eos": "append_eos",
            **{name: name for name in _IN_CONFIG},
            **(names or {}),
        }
        for name, allowed in (("method", METHODS), ("append_eos", ENDS), ("layout", LAYOUTS)):
            value = getattr(self, name)
            if value not in allowed:
                listed = ", ".join(allowed)
                raise ConfigError(f"{called[name]} is {value!r}; it is one of {listed}.")
        if self.alpha is not None and self.method != "tdpo2":
            raise ConfigError(
                f"{called['alpha']} is {self.alpha}, and {called['method']} is {self.method!r}: "
                f"only tdpo2 reads it. Leave {called['alpha']} out, or set {called['method']}."
            )
        if self.alpha is not None and self.alpha < 0:
            raise ConfigError(f"{called['alpha']} is {self.alpha}; it is at least 0.")
        if self.memory_budget is not None and self.memory_budget < 1:
            name = called["memory_budget"]
            raise ConfigError(f"{name} is {self.memory_budget}; it is at least 1 byte.")


_IN_CONFIG = {name: f"prefkit_{name}" for name in ("method", "alpha", "layout", "memory_budget")}


# The last is that of configs which are TRL's own; the first what it is without `patch`.
_defaults = [Settings()]


def set_defaults(settings: Settings | None) -> None:
    """What configs of TRL's own mean from now on; None = as without `patch`."""
    del _defaults[1:]
    if settings is not None:
        _defaults.append(settings)


@dataclass
class DPOConfig(trl.DPOConfig):
    """TRL's `DPOConfig`, with prefkit's options beside TRL's.

    Args:
        prefkit_method: "dpo" (TRL's `loss_type` names the loss), "tdpo1" or "tdpo2" (token-level
            DPO with the full-vocabulary KL, arXiv 2404.11999; `loss_type` stays "sigmoid").
        prefkit_alpha: α of tdpo2, and of no other method; None = 0.5.
        append_eos: which completions of the standard format get an end-of-sequence token: "auto"
            (all but those of rows with a `prefix` or `initial_reason_steps`, which are steps),
            "always" (as TRL does) or "never". A row's own `append_eos` goes before.
        prefkit_layout: what the models read: "shared" (a pair as one row without padding, its
            common prefix once), "padded" (TRL's rows), or "auto" (shared where the models can read
            such rows; a line in the log says which, and why).
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
    prefkit_alpha: float | None = field(
        default=None, metadata={"help": "Weight of the sequential KL term of tdpo2; None = 0.5."}
    )
    append_eos: str = field(
        default="auto",
        metadata={
            "help": "Which completions of the standard format get an end-of-sequence token: auto "
            "(all but those of rows with a prefix, which are steps), always (as TRL does), never.",
            "choices": list(ENDS),
        },
    )
    prefkit_layout: str = field(
        default="auto",
        metadata={
            "help": "What the models read: shared (a pair as one row without padding, its common "
            "prefix once), padded (TRL's rows), or auto (shared where the models can).",
            "choices": list(LAYOUTS),
        },
    )
    prefkit_memory_budget: int | None = field(
        default=None,
        metadata={"help": "Bytes for buffers of logits in the fused head; None = a default."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Settings.of(self)
