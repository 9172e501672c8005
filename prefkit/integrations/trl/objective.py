"""TRL's options of the loss → prefkit's objective, which gives TRL's numbers."""

from typing import Any

from prefkit.errors import ConfigError
from prefkit.integrations.trl.config import Settings
from prefkit.loss.objective import Objective
from prefkit.loss.objectives import DPO, TDPO

# TRL's loss_type → the options of `DPO`. Its "sigmoid" does not read label_smoothing.
_LINKS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "hinge": {"link": "hinge"},
    "ipo": {"link": "ipo"},
    "robust": {"link": "robust"},
    "sigmoid_norm": {"length_normalized": True},
}


class Unsupported(Exception):
    """A loss of TRL's that prefkit does not have; the message is why, in words."""


def options_of(trainer: Any) -> tuple[Any, ...]:
    """What the objective is made of, as it is now: callbacks may change it while a run goes on."""
    return (
        trainer.beta,
        tuple(trainer.loss_types),
        tuple(trainer.loss_weights),
        trainer.label_smoothing,
        trainer.f_divergence_type,
        trainer.ld_alpha,
        trainer.use_weighting,
    )


def objective_of(trainer: Any, settings: Settings) -> Objective:
    """The objective of a trainer's options.

    Raises:
        Unsupported: TRL has the loss, prefkit has not.
        ConfigError: options that TRL's loss has, for a method that TRL has not.
    """
    if settings.method != "dpo":
        return _token_level(trainer, settings)
    (kind, *others) = trainer.loss_types
    if others or trainer.loss_weights != [1.0]:
        raise Unsupported("several losses are combined")
    if kind not in _LINKS:
        raise Unsupported(f"prefkit has no loss_type {kind!r}")
    if reason := _of_trl_alone(trainer):
        raise Unsupported(f"prefkit has no {reason}")
    options = dict(_LINKS[kind])
    if kind == "robust":
        options["label_smoothing"] = trainer.label_smoothing
    try:
        return DPO(beta=trainer.beta, **options)
    except ConfigError as error:  # TRL warns of some values, prefkit refuses them
        raise Unsupported(str(error).rstrip(".")) from error


def _of_trl_alone(trainer: Any) -> str | None:
    """The first option of the loss that only TRL has, as it was given."""
    if trainer.f_divergence_type != "reverse_kl":
        return f"f_divergence_type={trainer.f_divergence_type!r}"
    if trainer.ld_alpha is not None:
        return f"ld_alpha={trainer.ld_alpha}"
    return "use_weighting" if trainer.use_weighting else None


def _token_level(trainer: Any, settings: Settings) -> TDPO:
    method = settings.method
    other = _of_trl_alone(trainer)
    if trainer.loss_types != ["sigmoid"] or trainer.loss_weights != [1.0]:
        other = f"loss_type={trainer.loss_types!r}"
    if other:
        raise ConfigError(f"prefkit_method is {method}, which has no {other}. Leave one out.")
    if trainer.precompute_ref_logps:
        raise ConfigError(
            f"prefkit_method is {method}, whose KL needs the reference's whole distribution: "
            "precompute_ref_log_probs cannot be had with it. Leave one out."
        )
    return TDPO(variant=method, beta=trainer.beta, alpha=settings.alpha)  # type: ignore[arg-type]
