"""Kernels that do nothing to logits, for what asks only for the products or the memory."""

from typing import Any

from torch import Tensor


class NoRows:
    """Kernels over logits that leave everything as it is."""

    @staticmethod
    def normalisers(block: Any, out: Tensor) -> None: ...

    @staticmethod
    def class_sums(block: Any, outputs: Any, norms: Tensor, out: Tensor) -> None: ...

    @staticmethod
    def gradient(
        block: Any,
        outputs: Any,
        stats: Tensor,
        norms: Tensor,
        cotangents: Tensor,
        out: Tensor,
        kl_sum: Tensor | None = None,
    ) -> None:
        if out.data_ptr() != block.raw.data_ptr():
            out.copy_(block.raw)
