"""`pair_scores`: linear scores of pairs, with their gradients made in the forward pass.

`operator` has the function and its autograd; `one_pass` computes the scores; `keep_dz` decides
whether the gradients by the logits are kept, and makes the head's gradient of them.
"""

from .operator import PairScores, pair_scores

__all__ = ["PairScores", "pair_scores"]
