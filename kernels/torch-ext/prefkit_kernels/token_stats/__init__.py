"""`token_stats`: per-token quantities of a language-model head, differentiable.

`operator` has the function, its torch.library operators and their autograd; `passes` computes.
"""

from .operator import token_stats

__all__ = ["token_stats"]
