"""TRL's options of the loss → prefkit's objective, which gives TRL's numbers."""

from typing import Any

from prefkit.errors import ConfigError
from prefkit.integrations.trl.config import ALPHA, Settings
from prefkit.integrations.trl.versions import drops_constants
from prefkit.loss.loss_types import LOSS_TYPES
from prefkit.loss.objective import Objective
from prefkit.loss.objectives import DPO, TDPO

_NOT_OF_TRL = {"plackett_luce"}
# Which of TRL's losses read label_smoothing. In prefkit's, these two more do.
_SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
_NOT_SMOOTHED = {"sigmoid", "sigmoid_norm"}
_BY_LENGTH = {"ipo", "sigmoid_norm"}


class Unsupported(Exception):
    """A loss of TRL's that prefkit does not have; the message is why, in words."""


def options_of(trainer: Any) -> dict[str, Any]:
    """What the objective is made of, as it is now: callbacks may change it while a run goes on."""
    return {
        "beta": trainer.beta,
        "loss_type": list(trainer.loss_types),
        "loss_weights": [float(weight) for weight in trainer.loss_weights],
        "label_smoothing": trainer.label_smoothing,
        "f_divergence_type": trainer.f_divergence_type,
        "f_alpha_divergence_coef": trainer.f_alpha_divergence_coef,
        "discopop_tau": trainer.args.discopop_tau,
        "ld_alpha": trainer.ld_alpha,
        "use_weighting": trainer.use_weighting,
    }


def objective_of(options: dict[str, Any], settings: Settings) -> Objective:
    """The objective of TRL's options.

    Args:
        options: of `options_of`.
        settings: what prefkit adds to them.

    Raises:
        Unsupported: TRL has the loss, prefkit has not.
        ConfigError: options that TRL's loss has, for a method that TRL has not.
    """
    if settings.method != "dpo":
        return _token_level(options, settings)
    names = set(options["loss_type"])
    if unknown := names - (LOSS_TYPES.keys() - _NOT_OF_TRL):
        raise Unsupported(f"prefkit has no loss_type {min(unknown)!r}")
    read = {**options}
    if not names & _SMOOTHED:
        del read["label_smoothing"]
    elif names & _NOT_SMOOTHED and options["label_smoothing"]:
        raise Unsupported(
            f"label_smoothing is of {min(names & _SMOOTHED)!r} alone, and prefkit would smooth "
            f"{min(names & _NOT_SMOOTHED)!r} as well"
        )
    if options["f_divergence_type"] != "reverse_kl" and names & _BY_LENGTH and drops_constants():
        raise Unsupported(
            f"this version of TRL has another {min(names & _BY_LENGTH)!r} with f_divergence_type"
        )
    if options["f_divergence_type"] != "alpha_divergence":
        del read["f_alpha_divergence_coef"]
    if "discopop" not in names:
        del read["discopop_tau"]
    try:
        return DPO(**read)
    except ConfigError as error:  # TRL warns of some values, prefkit refuses them
        raise Unsupported(str(error).rstrip(".")) from error


def _token_level(options: dict[str, Any], settings: Settings) -> TDPO:
    usual = {
        "loss_type": ["sigmoid"],
        "loss_weights": [1.0],
        "f_divergence_type": "reverse_kl",
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "use_weighting": False,
    }
    method: Any = settings.method
    for name, value in usual.items():
        if options[name] != value:
            raise ConfigError(
                f"prefkit_method is {method}, which has no {name}: it is {options[name]!r}. Leave "
                "one of the two out."
            )
    alpha = ALPHA if settings.alpha is None else settings.alpha
    return TDPO(variant=method, beta=options["beta"], alpha=alpha)
