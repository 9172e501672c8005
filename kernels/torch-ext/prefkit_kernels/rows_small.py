"""The row functions of `rows_triton` for small heads: on operands, in the place of stored logits.

`Chunks` takes them where `small_head.worthwhile` says so. `rows.raw` has a shape alone.
"""

from torch import Tensor

from . import small_head
from .logits import LogitTransform
from .rows import Rows


def worthwhile(
    hidden: Tensor, weight: Tensor, outputs: tuple[str, ...], transform: LogitTransform
) -> bool:
    """See `small_head.worthwhile`."""
    return small_head.worthwhile(hidden, weight, outputs, transform)


def normalisers(rows: Rows, out: Tensor) -> None:
    """See `rows_torch.normalisers`."""
    assert rows.operands is not None, "small heads come with their operands"
    head = (*rows.operands, rows.bias)
    small_head.normalisers(*head, rows.targets, rows.transform, rows.first_class, out)


def gradient(
    rows: Rows,
    outputs: tuple[str, ...],  # "logp", "kl" or both
    stats: Tensor,  # not read
    norms: Tensor,  # (4, C)
    cotangents: Tensor,  # (len(outputs), C)
    out: Tensor,  # (C, S)
    kl_sum: Tensor | None = None,  # (C,)
) -> None:
    """See `rows_torch.gradient`."""
    assert rows.operands is not None, "small heads come with their operands"
    policy = (*rows.operands, rows.bias)
    reference = None
    if rows.ref_operands is not None:
        reference = (*rows.ref_operands, rows.ref_bias)
    where = (rows.targets, rows.transform, rows.first_class)
    small_head.gradient(policy, reference, outputs, *where, norms, cotangents, out, kl_sum)
