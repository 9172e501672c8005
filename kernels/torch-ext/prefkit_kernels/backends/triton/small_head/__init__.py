"""Small heads: normalisers and gradients from hidden states and weight, without stored logits.

The same meaning as `normalisers` and `gradient` of `backends.triton`, on operands in the place of
stored logits: of `block.raw` only the shape is read. A tile of logits is multiplied, used and
forgotten, and the gradient multiplies it again. When that wins, and by which tiles, is in `launch`.
"""

from .gradient_kernel import gradient
from .launch import worthwhile
from .normalisers_kernel import normalisers

__all__ = ["gradient", "normalisers", "worthwhile"]
