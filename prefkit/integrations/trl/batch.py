"""TRL's padded batch, as the loss reads it: the scored tokens of all rows, one after another.

Of B pairs TRL makes 2B rows: all chosen ones, then all rejected ones. `completion_mask` says which
tokens count, and `token_weights`, where rows bring weights, how much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefkit.errors import ModelError

WEIGHTS = "token_weights"  # (2B, L) float, aligned with input_ids; a key of batches
_NOT_OF_THE_MODEL = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps", WEIGHTS}


def model_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch the model reads, images and all."""
    kept = {key: value for key, value in inputs.items() if key not in _NOT_OF_THE_MODEL}
    return {**kept, "use_cache": False}


@dataclass(frozen=True)
class Scored:
    """The N tokens of a batch that have a weight above 0.

    Attributes:
        pairs: B. length: L, of a row.
        rows: (N,) int64, below 2B. places: (N,) int64, of the predicting position in its row.
        targets: (N,) int64. segments: (N,) int64, 2i chosen of pair i, 2i + 1 rejected.
        weights: (N,) float32, or None = all 1.
    """

    pairs: int
    length: int
    rows: Tensor
    places: Tensor
    targets: Tensor
    segments: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "Scored":
        """Of a batch on the device; how many tokens there are is asked of a GPU once."""
        ids, mask = inputs["input_ids"], inputs["completion_mask"][:, 1:] != 0
        given = inputs.get(WEIGHTS)
        if given is not None:
            mask = mask & (given[:, 1:] != 0)
        pairs = len(ids) // 2
        rows, places = mask.nonzero(as_tuple=True)
        return cls(
            pairs=pairs,
            length=ids.shape[1],
            rows=rows,
            places=places,
            targets=ids[rows, places + 1],
            segments=torch.where(rows < pairs, 2 * rows, 2 * (rows - pairs) + 1),
            weights=None if given is None else given[rows, places + 1].float(),
        )

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> "Scored":
        """The same on the device of the head, where a model is spread over several."""
        vectors: dict[str, Any] = {
            key: x.to(device) for key, x in vars(self).items() if isinstance(x, Tensor)
        }
        return replace(self, **vectors)

    def pick(self, hidden: Tensor) -> Tensor:
        """The hidden states (N, D) of the predicting positions, of all (2B, L', D).

        What prompt-learning adapters put before a row makes it longer than its text: L' ≥ L.

        Raises:
            ModelError: the states are not those of the batch's rows.
        """
        rows, length, width = hidden.shape
        if rows != 2 * self.pairs or length < self.length:
            raise ModelError(
                f"the model made {rows} × {length} hidden states of {2 * self.pairs} × "
                f"{self.length} tokens"
            )
        positions = self.rows * length + self.places + (length - self.length)
        return hidden.reshape(-1, width).index_select(0, positions.to(hidden.device))

    def sums(self, values: Tensor) -> Tensor:
        """(2B,) Σ of values (N,) over each row, in the batch's order of rows."""
        return values.new_zeros(2 * self.pairs).index_put((self.rows,), values, accumulate=True)

    def weighted(self, values: Tensor) -> Tensor:
        """(2B,) the same of values times weights."""
        return self.sums(values if self.weights is None else values * self.weights)

    def present(self) -> Tensor:
        """() how many pairs have a scored token at all."""
        counts = torch.bincount(self.segments // 2, minlength=self.pairs)
        return (counts > 0).sum()

    def tails(self, alpha: float | None) -> Tensor | None:
        """(N,) α beyond the length of the pair's shorter side, else 1 (LD-DPO, arXiv 2409.06411).

        None = 1 everywhere, which is alpha None.
        """
        if alpha is None:
            return None
        lengths = torch.bincount(self.rows, minlength=2 * self.pairs)
        shared = lengths.view(2, -1).amin(0).repeat(2)
        place = torch.arange(len(self), device=self.rows.device)
        place = place - (lengths.cumsum(0) - lengths)[self.rows]
        return torch.where(place < shared[self.rows], 1.0, alpha)

    def spread(self, chosen: Tensor, rejected: Tensor, alpha: float | None = None) -> Tensor:
        """(N,) values whose weighted sum over each row is the one given, (B,) chosen and rejected.

        The same value for each token of a row: sums of small differences stay exact.
        """
        sums, factors = torch.cat([chosen, rejected]), self.tails(alpha)
        ones = torch.ones_like(self.targets, dtype=sums.dtype)
        totals = self.weighted(ones if factors is None else ones * factors)
        return (sums / torch.where(totals > 0, totals, 1))[self.rows]
