"""What an evaluation tells of each pair: for `compute_metrics`, and what `predict` returns."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import EvalPrediction

from prefkit.errors import ConfigError


class PairPredictions(EvalPrediction):
    """Values of P pairs in the order of their rows, each once however many processes there are.

    It can be given to a function made for reward models as well: `predictions` are the two rewards
    of each pair, and `label_ids` say which of them should be larger.

    Args:
        values: (P, 2) logps, rewards and, where there is a reference, ref_logps.
        rows: (P,) see below.

    Attributes:
        predictions: (P, 2) float32, chosen_rewards and rejected_rewards.
        label_ids: (P,) int64, all 0: the chosen response is better.
        chosen_logps, rejected_logps: (P,) float32, the log-probability of each response in nats:
            the plain sum over its scored tokens.
        ref_chosen_logps, ref_rejected_logps: the same under the reference, None without one.
        chosen_rewards, rejected_rewards: (P,) float32, as the loss sees them; of dpo β times the
            weighted sum of log-probability minus reference's log-probability.
        margins: (P,) float32, chosen_rewards - rejected_rewards.
        rows: (P,) int64, the 0-based row of its source that each pair came from.
        metrics: of the evaluation where `predict` made this, else empty.
    """

    def __init__(self, values: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        rewards = values["rewards"]
        super().__init__(predictions=rewards, label_ids=np.zeros(len(rewards), np.int64))
        self.chosen_logps, self.rejected_logps = values["logps"].T
        self.ref_chosen_logps, self.ref_rejected_logps = None, None
        if "ref_logps" in values:
            self.ref_chosen_logps, self.ref_rejected_logps = values["ref_logps"].T
        self.chosen_rewards, self.rejected_rewards = rewards.T
        self.margins = self.chosen_rewards - self.rejected_rewards
        self.rows = rows
        self.metrics: dict[str, float] = {}


class PairCollector:
    """Collects the values of the pairs of an evaluation, batch by batch."""

    def __init__(self) -> None:
        self._indices: list[Tensor] = []
        self._values: list[dict[str, Tensor]] = []

    def add(self, indices: Tensor, values: dict[str, Tensor]) -> None:
        """Adds a batch: (P,) the pairs' indices in the data set, and their values by name."""
        self._indices.append(indices)
        self._values.append(values)

    def gathered(self, rows: Sequence[int]) -> PairPredictions:
        """The values of all processes, each of which must ask.

        Args:
            rows: of the pairs of the data set, in order.

        Raises:
            ConfigError: the batches' `pair_index` does not name each pair.
        """
        indices = torch.cat(self._indices).cpu().numpy() if self._indices else None
        values = {
            name: torch.cat([one[name] for one in self._values]).float().cpu().numpy()
            for name in (self._values[0] if self._values else ())
        }
        # A process may have had nothing but fillers, and processes that share rows have the same.
        found = [one for one in gather_object([(indices, values)]) if one[0] is not None]
        seen, first = np.unique(np.concatenate([one[0] for one in found]), return_index=True)
        if not np.array_equal(seen, np.arange(len(rows))):
            raise ConfigError(
                f"Values of {len(rows)} pairs are wanted, and the batches name {len(seen)} of "
                "them. A data_collator of your own has to give pair_index (B,) int64, each pair's "
                "index in the data set."
            )
        names = found[0][1]
        merged = {name: np.concatenate([one[1][name] for one in found])[first] for name in names}
        return PairPredictions(merged, np.asarray(rows, np.int64))


def own_metrics(
    compute: Callable[[PairPredictions], Mapping[str, Any]],
    predictions: PairPredictions,
    prefix: str,
    taken: Collection[str],
) -> dict[str, float]:
    """What the user's `compute_metrics` makes of the pairs, under the names that are logged.

    Args:
        compute: the user's function.
        predictions: of the evaluation.
        prefix: of its metrics' names, such as "eval".
        taken: names, with the prefix, that the evaluation reports itself.

    Raises:
        ConfigError: no dict of numbers, or a name that is taken.
    """
    found = compute(predictions)
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"compute_metrics returned a {type(found).__name__}; it must return a dict of numbers."
        )
    metrics = {}
    for name, value in found.items():
        full = str(name) if str(name).startswith(f"{prefix}_") else f"{prefix}_{name}"
        if full in taken:
            raise ConfigError(
                f"compute_metrics returned {name}, which an evaluation reports already. Give it "
                "another name."
            )
        if np.ndim(value) or not np.issubdtype(np.asarray(value).dtype, np.number):
            raise ConfigError(
                f"compute_metrics returned {name}, a {type(value).__name__}; each of its values "
                "must be one number."
            )
        metrics[full] = float(value)
    return metrics
