"""TRL's batch, as the loss reads it: the scored tokens of all rows, one after another.

Of B pairs TRL makes 2B padded rows: all chosen ones, then all rejected ones. `completion_mask` says
which tokens count. `prefkit.integrations.trl.collator` adds, under the two names below, how much
each token counts, and the same pairs as one row without padding.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefkit.data.pair import PairBatch
from prefkit.errors import ModelError
from prefkit.loss.sides import ranks, widest
from prefkit.model.attention.install import reading

WEIGHTS = "token_weights"  # (2B, L) float, aligned with input_ids; a user's collator may give it
ROW = "prefkit_row"  # a PairBatch
OURS = {WEIGHTS, ROW}
_NOT_OF_THE_MODEL = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps", *OURS}


def padded_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the model reads of TRL's rows, images and all."""
    kept = {key: value for key, value in inputs.items() if key not in _NOT_OF_THE_MODEL}
    return {**kept, "use_cache": False}


@contextlib.contextmanager
def read_by_model(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the model reads of a batch, within the block: its one row without padding, if any."""
    row = inputs.get(ROW)
    if row is None:
        yield padded_inputs(inputs)
    else:
        with reading(row) as given:
            yield given


@dataclass(frozen=True)
class Scored:
    """The N tokens of a batch that have a weight above 0.

    Attributes:
        pairs: B. shape: rows and length of what the model reads.
        positions: (N,) int64, of the predicting positions in the flattened rows.
        targets: (N,) int64. segments: (N,) int64, 2i chosen of pair i, 2i + 1 rejected.
        weights: (N,) float32, or None = all 1.
    """

    pairs: int
    shape: tuple[int, int]
    positions: Tensor
    targets: Tensor
    segments: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "Scored":
        """Of a batch on the device; how many tokens there are is asked of a GPU once.

        Raises:
            ModelError: somebody has cut the row as if it were padded rows.
        """
        row, has_weights = inputs.get(ROW), WEIGHTS in inputs
        return cls._of_padded(inputs) if row is None else cls._of_row(row, has_weights)

    @classmethod
    def _of_padded(cls, inputs: Mapping[str, Any]) -> "Scored":
        ids, mask = inputs["input_ids"], inputs["completion_mask"][:, 1:] != 0
        given = inputs.get(WEIGHTS)
        if given is not None:
            mask = mask & (given[:, 1:] != 0)
        count, length = ids.shape
        rows, places = mask.nonzero(as_tuple=True)
        return cls(
            pairs=count // 2,
            shape=(count, length),
            positions=rows * length + places,
            targets=ids[rows, places + 1],
            segments=torch.where(rows < count // 2, 2 * rows, 2 * rows - count + 1),
            weights=None if given is None else given[rows, places + 1].float(),
        )

    @classmethod
    def _of_row(cls, row: PairBatch, has_weights: bool) -> "Scored":
        vectors = {name: row[name] for name in ("positions", "targets", "segments")}
        weights = row["weights"] if has_weights else None
        if weights is not None:
            kept = weights != 0
            vectors = {name: vector[kept] for name, vector in vectors.items()}
            weights = weights[kept]
        if len(vectors["targets"]) != row["num_scored"]:
            raise ModelError(
                f"{ROW} of the batch has {len(vectors['targets'])} left of its {row['num_scored']} "
                "scored tokens: what shares batches out over processes has cut its tensors. Set "
                "prefkit_layout: padded."
            )
        return cls(
            len(row["pair_index"]), (1, row["input_ids"].shape[1]), **vectors, weights=weights
        )

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> "Scored":
        """The same on the device of the head, where a model is spread over several."""
        found = vars(self).items()
        vectors: dict[str, Any] = {k: x.to(device) for k, x in found if isinstance(x, Tensor)}
        return replace(self, **vectors)

    def pick(self, hidden: Tensor) -> Tensor:
        """The hidden states (N, D) of the predicting positions, of all (R, L', D).

        What prompt-learning adapters put before a row makes it longer than its text: L' ≥ L.

        Raises:
            ModelError: the states are not those of the batch's rows.
        """
        (rows, length), (found, longer, width) = self.shape, hidden.shape
        if found != rows or longer < length:
            raise ModelError(
                f"the model made {found} × {longer} hidden states of {rows} × {length} tokens"
            )
        positions = self.positions
        if before := longer - length:
            positions = positions + (positions // length + 1) * before
        return hidden.reshape(-1, width).index_select(0, positions.to(hidden.device))

    # -- sums over the sides of pairs -----------------------------------------------------------

    @property
    def rows(self) -> Tensor:
        """(N,) int64 below 2B: the place of each token's side among TRL's rows."""
        return self.segments // 2 + self.pairs * (self.segments % 2)

    def summed(self, values: Tensor) -> Tensor:
        """(2B,) Σ values (N,) of each side, in the order of TRL's rows."""
        wide = widest(values)
        sums = wide.new_zeros(2 * self.pairs).index_put((self.rows,), wide, accumulate=True)
        return sums.to(values.dtype)

    def weighted(self, values: Tensor) -> Tensor:
        """(2B,) Σ w·values (N,) of each side."""
        return self.summed(values if self.weights is None else values * self.weights)

    def present(self) -> Tensor:
        """() how many pairs have a scored token at all."""
        seen = torch.zeros(self.pairs, dtype=torch.int64, device=self.segments.device)
        return seen.index_fill(0, self.segments // 2, 1).sum()  # a GPU is asked nothing

    def tails(self, alpha: float | None) -> Tensor | None:
        """(N,) α beyond the length of the pair's shorter side, else 1 (LD-DPO, TRL's `ld_alpha`).

        None = 1 everywhere, which is alpha None.
        """
        if alpha is None:
            return None
        rows = self.rows
        place, lengths = ranks(rows, 2 * self.pairs)
        shared = lengths.view(2, -1).amin(0).repeat(2)
        return torch.where(place < shared[rows], 1.0, alpha)

    def spread(self, chosen: Tensor, rejected: Tensor, alpha: float | None = None) -> Tensor:
        """(N,) values whose weighted sum over each side is the one given, (B,) chosen and rejected.

        The same value for each token of a side: sums of small differences stay exact.
        """
        sums, factors = torch.cat([chosen, rejected]), self.tails(alpha)
        ones = torch.ones_like(self.targets, dtype=sums.dtype)
        totals = self.weighted(ones if factors is None else ones * factors)
        return (sums / torch.where(totals > 0, totals, 1))[self.rows]
