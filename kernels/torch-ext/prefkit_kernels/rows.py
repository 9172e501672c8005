"""A block of raw logits and what is needed to read them: the argument of every row function."""

from dataclasses import dataclass

from torch import Tensor

from .logits import LogitTransform


@dataclass(frozen=True)
class Rows:
    """A block of raw logits and what is needed to read them.

    Attributes:
        raw: (C, S) policy logits before bias, scale, softcap and temperature.
        ref: (C, S') reference logits likewise, or None.
        bias, ref_bias: (S,), (S',) or None.
        targets: (C,) int64 class of each row.
        transform: scale, softcap, temperature (of both).
        first_class: class number of column 0 (a vocabulary slice starts there).
        operands, ref_operands: hidden (C, D) and weight (S, D) of which raw and ref would be the
            products, where those are not there (`rows_small`).
    """

    raw: Tensor
    ref: Tensor | None
    bias: Tensor | None
    ref_bias: Tensor | None
    targets: Tensor
    transform: LogitTransform
    first_class: int = 0
    operands: tuple[Tensor, Tensor] | None = None
    ref_operands: tuple[Tensor, Tensor] | None = None

    def block(self, start: int, stop: int) -> "Rows":
        return Rows(
            self.raw[start:stop],
            None if self.ref is None else self.ref[start:stop],
            self.bias,
            self.ref_bias,
            self.targets[start:stop],
            self.transform,
            self.first_class,
        )
