"""The kernels in plain torch: raw logits → per-token statistics, and their gradient.

Three functions, with the same signatures as in `backends.triton`: `normalisers`, `class_sums` and
`gradient`. All read raw logits (the bare matrix product), of the whole vocabulary or of a slice of
it, and leave them as they are; only `gradient` may write over them.
"""

from .backward import gradient
from .forward import class_sums, normalisers

__all__ = ["class_sums", "gradient", "normalisers"]
