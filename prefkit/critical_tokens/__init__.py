"""Contrastive scores of cDPO as token weights: any pairs, any two models.

    from prefkit.critical_tokens import score_pairs
    scored = score_pairs("pairs.jsonl", "positive_model", "negative_model")

Names load on first use, so that the help of `prefkit score` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["ScoreFields", "Scored", "score_pairs", "weigh"]

if TYPE_CHECKING:
    from prefkit.critical_tokens.fields import ScoreFields
    from prefkit.critical_tokens.scoring import Scored, score_pairs
    from prefkit.critical_tokens.weighing import weigh

_HOMES = {
    "ScoreFields": "fields",
    "Scored": "scoring",
    "score_pairs": "scoring",
    "weigh": "weighing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prefkit.critical_tokens' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prefkit.critical_tokens.{_HOMES[name]}"), name)
