"""prefkit: preference training at the level of tokens and steps.

    from prefkit import PreferenceTrainer, PreferenceConfig          # a transformers.Trainer
    from prefkit import SupervisedTrainer, SupervisedConfig          # the same for solutions
    from prefkit import DPO, DPOP, TDPO, SimPO, fused_preference_loss    # for your own loop

Names load on first use, so that `import prefkit` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from prefkit.version import VERSION as __version__

__all__ = [
    "DPO",
    "DPOP",
    "TDPO",
    "ConfigError",
    "ModelError",
    "PairPredictions",
    "PreferenceConfig",
    "PreferenceTrainer",
    "PrefkitError",
    "RowError",
    "SimPO",
    "SupervisedConfig",
    "SupervisedTrainer",
    "__version__",
    "fused_preference_loss",
]

if TYPE_CHECKING:
    from prefkit.errors import ConfigError, ModelError, PrefkitError, RowError
    from prefkit.loss.fused import fused_preference_loss
    from prefkit.loss.objectives import DPO, DPOP, TDPO, SimPO
    from prefkit.train.config import PreferenceConfig
    from prefkit.train.predictions import PairPredictions
    from prefkit.train.supervised import SupervisedConfig, SupervisedTrainer
    from prefkit.train.trainer import PreferenceTrainer

_HOMES = {
    **dict.fromkeys(("PrefkitError", "ConfigError", "ModelError", "RowError"), "prefkit.errors"),
    "DPO": "prefkit.loss.objectives",
    "DPOP": "prefkit.loss.objectives",
    "TDPO": "prefkit.loss.objectives",
    "SimPO": "prefkit.loss.objectives",
    "fused_preference_loss": "prefkit.loss.fused",
    **dict.fromkeys(("SupervisedConfig", "SupervisedTrainer"), "prefkit.train.supervised"),
    "PairPredictions": "prefkit.train.predictions",
    "PreferenceConfig": "prefkit.train.config",
    "PreferenceTrainer": "prefkit.train.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prefkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
