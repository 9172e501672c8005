"""`patch()`: prefkit's head in every `trl.DPOTrainer`, for code that one does not own.

The methods of TRL's class itself are replaced, not the name `DPOTrainer` in some module: whoever
has imported the class, or made a subclass of it, has the same class before and after.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import trl

from prefkit.errors import ConfigError
from prefkit.integrations.trl import methods
from prefkit.integrations.trl.config import Settings, set_defaults
from prefkit.integrations.trl.trainer import DPOTrainer

_REPLACED: dict[str, Callable[..., Any]] = {
    "__init__": methods.init,
    "_compute_loss": methods.compute_loss,
    "compute_ref_log_probs": methods.compute_ref_log_probs,
    "_precompute_ref_logps": methods.precompute_ref_logps,
    "_prepare_dataset": methods.prepare_dataset,
    "evaluate": methods.evaluate,
    "_set_signature_columns_if_needed": methods.set_signature_columns,
}
_FALLBACK = "prefkit_fallback"
_COMPUTES = ("_compute_loss", "compute_ref_log_probs")
_originals: dict[str, Any] = {}  # TRL's own, while they are replaced
_made: "weakref.WeakSet[Any]" = weakref.WeakSet()  # the trainers that were made under the patch


def patch(**settings: Any) -> None:
    """Gives every `trl.DPOTrainer`, and every class made of it, prefkit's head.

    Trainers that exist already keep TRL's loss. A subclass that replaces one of the methods keeps
    its own. Called again it takes other settings, if it is given any, for trainers to be made.

    Args:
        settings: `method`, `alpha`, `append_eos`, `layout`, `memory_budget` of `Settings`, for
            configs that are TRL's own and cannot say them.

    Raises:
        ConfigError: a value that is none of an option's.
    """
    if settings or not _originals:
        set_defaults(Settings(**settings))
    if _originals:
        return
    for trainer in _made:
        for name in _COMPUTES:
            vars(trainer).pop(name, None)
    for name, ours in _REPLACED.items():
        _originals[name] = vars(trl.DPOTrainer)[name]
        setattr(trl.DPOTrainer, name, _around(_originals[name], ours))
    setattr(trl.DPOTrainer, _FALLBACK, property(methods.fallback))


def unpatch() -> None:
    """Takes `patch` back.

    Trainers that were made under it raise ConfigError from now on, and work again after another
    `patch()`: TRL's loss would not be what they were made for.
    """
    set_defaults(None)
    if not _originals:
        return
    for name, original in _originals.items():
        setattr(trl.DPOTrainer, name, original)
    _originals.clear()
    delattr(trl.DPOTrainer, _FALLBACK)
    for trainer in _made:
        if not isinstance(trainer, DPOTrainer):  # that has the methods without the patch
            vars(trainer).update(dict.fromkeys(_COMPUTES, _refuse))


def _refuse(*_: Any, **__: Any) -> Any:
    raise ConfigError(
        "This trainer was made under prefkit's patch, which unpatch() has taken back. Call patch() "
        "again, or make another trainer."
    )


def _around(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if ours is methods.init:
            _made.add(self)
        elif self not in _made:
            return original(self, *args, **kwargs)
        return ours(self, functools.partial(original, self), *args, **kwargs)

    return method
