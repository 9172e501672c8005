"""Fused per-token quantities of language-model heads for preference training.

    from prefkit_kernels import token_stats, pair_scores, contrastive_scores

No (tokens × vocabulary) matrix is ever held; logits are fp32 whatever the inputs' precision.
"""

from .contrastive import contrastive_scores
from .core.outputs import TokenStats
from .pair_scores import PairScores, pair_scores
from .token_stats import token_stats
from .vocab_parallel import VocabShard

__all__ = [
    "PairScores",
    "TokenStats",
    "VocabShard",
    "contrastive_scores",
    "pair_scores",
    "token_stats",
]
__version__ = "0.1.0"
