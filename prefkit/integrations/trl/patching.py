"""`patch()`: prefkit's head in every `trl.DPOTrainer`, for code that one does not own.

The methods of TRL's class itself are replaced, not the name `DPOTrainer` in some module: whoever
has imported the class, or made a subclass of it, has the same class before and after.
"""

import functools
from collections.abc import Callable
from typing import Any

import trl

from prefkit.integrations.trl import methods
from prefkit.integrations.trl.config import Settings, set_defaults

_REPLACED: dict[str, Callable[..., Any]] = {
    "__init__": methods.init,
    "_compute_loss": methods.compute_loss,
    "compute_ref_log_probs": methods.compute_ref_log_probs,
    "_precompute_ref_logps": methods.precompute_ref_logps,
    "_prepare_dataset": methods.prepare_dataset,
    "_set_signature_columns_if_needed": methods.set_signature_columns,
}
_FALLBACK = "prefkit_fallback"
_originals: dict[str, Any] = {}  # TRL's own, while they are replaced


def patch(**settings: Any) -> None:
    """Gives every `trl.DPOTrainer`, and every class made of it, prefkit's head.

    Trainers that exist already are included. A subclass that replaces one of the methods keeps its
    own. Called again it only takes other settings.

    Args:
        settings: `method`, `alpha`, `append_eos`, `layout`, `memory_budget` of `Settings`, for
            configs that are TRL's own and cannot say them.

    Raises:
        ConfigError: a value that is none of an option's.
    """
    set_defaults(Settings(**settings))
    if _originals:
        return
    for name, ours in _REPLACED.items():
        _originals[name] = vars(trl.DPOTrainer)[name]
        setattr(trl.DPOTrainer, name, _around(_originals[name], ours))
    setattr(trl.DPOTrainer, _FALLBACK, property(methods.fallback))


def unpatch() -> None:
    """Takes `patch` back."""
    set_defaults(None)
    if not _originals:
        return
    for name, original in _originals.items():
        setattr(trl.DPOTrainer, name, original)
    _originals.clear()
    delattr(trl.DPOTrainer, _FALLBACK)


def _around(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, functools.partial(original, self), *args, **kwargs)

    return method
