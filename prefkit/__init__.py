"""prefkit: preference training at the level of tokens and steps.

    from prefkit import PreferenceTrainer, PreferenceConfig          # a transformers.Trainer
    from prefkit import SupervisedTrainer, SupervisedConfig          # the same for solutions
    from prefkit import DPO, DPOP, KTO, ORPO, TDPO, SimPO, preference_loss   # for your own loop
    from prefkit import stream_of, reference_logp, install, fused_preference_loss   # its parts

Names load on first use, so that `import prefkit` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from prefkit.version import VERSION as __version__

__all__ = [
    "DPO",
    "DPOP",
    "KTO",
    "ORPO",
    "TDPO",
    "ConfigError",
    "ModelError",
    "PairPredictions",
    "PreferenceConfig",
    "PreferenceLoss",
    "PreferenceTrainer",
    "PrefkitError",
    "RowError",
    "SimPO",
    "SupervisedConfig",
    "SupervisedTrainer",
    "__version__",
    "fused_preference_loss",
    "install",
    "items_of",
    "preference_loss",
    "reference_logp",
    "stream_of",
]

_HOMES = {
    **dict.fromkeys(("PrefkitError", "ConfigError", "ModelError", "RowError"), "prefkit.errors"),
    "DPO": "prefkit.loss.objectives",
    "DPOP": "prefkit.loss.objectives",
    "KTO": "prefkit.loss.objectives",
    "ORPO": "prefkit.loss.objectives",
    "TDPO": "prefkit.loss.objectives",
    "SimPO": "prefkit.loss.objectives",
    **dict.fromkeys(("PreferenceLoss", "fused_preference_loss"), "prefkit.loss.fused"),
    "install": "prefkit.model.head.fused",
    "items_of": "prefkit.loop.items",
    **dict.fromkeys(("preference_loss", "reference_logp"), "prefkit.loop.preference"),
    "stream_of": "prefkit.data.batch.padded",
    **dict.fromkeys(("SupervisedConfig", "SupervisedTrainer"), "prefkit.train.supervised"),
    "PairPredictions": "prefkit.train.predictions",
    "PreferenceConfig": "prefkit.train.config",
    "PreferenceTrainer": "prefkit.train.trainer",
}

if TYPE_CHECKING:
    from prefkit.data.batch.padded import stream_of
    from prefkit.errors import ConfigError, ModelError, PrefkitError, RowError
    from prefkit.loop.items import items_of
    from prefkit.loop.preference import preference_loss, reference_logp
    from prefkit.loss.fused import PreferenceLoss, fused_preference_loss
    from prefkit.loss.objectives import DPO, DPOP, KTO, ORPO, TDPO, SimPO
    from prefkit.model.head.fused import install
    from prefkit.train.config import PreferenceConfig
    from prefkit.train.predictions import PairPredictions
    from prefkit.train.supervised import SupervisedConfig, SupervisedTrainer
    from prefkit.train.trainer import PreferenceTrainer
else:  # a type checker that saw it would take any name for one of prefkit's

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'prefkit' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)
