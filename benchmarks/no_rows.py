"""Row kernels that do nothing, for what asks only for the products or the memory."""

from typing import Any

from torch import Tensor


class NoRows:
    """Row kernels that leave everything as it is."""

    @staticmethod
    def normalisers(rows: Any, out: Tensor) -> None: ...

    @staticmethod
    def class_sums(rows: Any, outputs: Any, norms: Tensor, out: Tensor) -> None: ...

    @staticmethod
    def gradient(
        rows: Any,
        outputs: Any,
        stats: Tensor,
        norms: Tensor,
        cotangents: Tensor,
        out: Tensor,
        kl_sum: Tensor | None = None,
    ) -> None:
        if out.data_ptr() != rows.raw.data_ptr():
            out.copy_(rows.raw)
