"""The loss of a batch of pairs, computed on the head's operands inside the model's own forward."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from prefkit.data.batch.spread import cut, gather_batches
from prefkit.data.pair import PairBatch
from prefkit.errors import ConfigError
from prefkit.loop.items import items_of, sides_there
from prefkit.loop.preference import TOKENS, ask_preference
from prefkit.loop.reference_point import point_of
from prefkit.loop.references import reference_terms
from prefkit.loss.by_pair import sums_by_pair
from prefkit.loss.fused import PreferenceLoss
from prefkit.loss.objectives import Objective
from prefkit.loss.token_metrics import tokens_of_metrics
from prefkit.train.checks.best_metric import objective_metrics
from prefkit.train.config import PreferenceConfig
from prefkit.train.metrics import TokenCount
from prefkit.train.models.run_models import RunModels
from prefkit.train.predictions import PairCollector
from prefkit.train.rows.caches import TOO_LATE
from prefkit.train.rows.even_evaluation import counted_pairs
from prefkit.train.step.balancing import balance_of
from prefkit.train.step.batch_loss import BatchLoss, with_balance


class PairLoss:
    """The objective over batches of pairs.

    Args:
        args: `memory_budget`, `head_backend`, `head_passes`, `log_entropy` and
            `sequence_parallel_size` are read.
        objective: on the pairs' per-token quantities.
        models: of the run; the reference may be replaced by its cache later.
    """

    def __init__(self, args: PreferenceConfig, objective: Objective, models: RunModels) -> None:
        self.args, self.objective, self.models = args, objective, models
        self.metrics = objective_metrics(objective, args.log_entropy)
        self.sequence_group: dist.ProcessGroup | None = None  # joined when the processes are there
        self.collector: PairCollector | None = None  # of an evaluation that asks for its pairs

    def count(self, batches: list) -> int:
        """What the loss is a mean over, of all the batches."""
        return sum(items_of(batch, self.objective) for batch in batches)

    def turns(self, batch: PairBatch) -> Iterator[PairBatch]:
        """The batches that this process has a part in: its own, or pieces of its whole group's."""
        group = self.sequence_group
        if group is None:
            yield batch
        else:
            for one in gather_batches(batch, group):
                yield cut(one, group, self.args.device)

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items: Any, steps: int
    ) -> BatchLoss:
        """The objective over a `PairBatch` on the device (see `StepLoss`).

        Raises:
            ConfigError: the reference was freed, and the batch brings nothing of it; or the batch
                lacks margins or groups that the objective needs.
        """
        count, group = items_of(inputs, self.objective), self.sequence_group
        items = counted_pairs(inputs)
        head, reference = self.models.head, self.models.reference
        options: dict[str, Any] = {
            "memory_budget": self.args.memory_budget,
            "backend": self.args.head_backend,
        }
        kept: list[PreferenceLoss] = []
        output = ask_preference(
            model,
            inputs,
            self.objective,
            head,
            self._reference_terms(inputs, options),
            num_pairs=num_items,
            sequence_group=group,
            reference_point=point_of(model, inputs, self.objective, head, reference, **options),
            balance=balance_of(self.models.router, inputs, steps, group),
            kept=kept,
            passes=self.args.head_passes,
            log_entropy=self.args.log_entropy,
            **options,
        )
        if self.collector is not None and not inputs.get("filler"):
            self._collect(inputs, kept[0])
        loss, metrics = output.value, dict(output.extras or {})
        assert loss is not None
        counts: dict[str, int | Tensor] = {
            "aux_loss": 1,
            **tokens_of_metrics(metrics.pop(TOKENS)),
            **self._items_by_metric(inputs, count),
        }
        metrics["loss"] = metrics["loss"] * ((count if num_items is None else num_items) / count)
        # How much of the text carries the loss: Σ weights over the tokens of both sides. Where
        # processes share a row each has its part, and the mean over processes divides by them.
        read = inputs["input_ids"].numel()  # where a collator of the user's own counts nothing
        carried = inputs["weights"].sum() * self.args.sequence_parallel_size
        text = inputs.get("text_tokens", read)
        metrics["active_weight_fraction"] = carried / text
        return BatchLoss(
            value=loss,
            metrics=with_balance(metrics, self.models.router),
            items=items,
            # The whole text counts on one of the processes that share the row.
            tokens=TokenCount(
                inputs.get("num_tokens", read), 0 if group is not None and group.rank() else text
            ),
            output=output,
            counts=counts,
        )

    def _items_by_metric(self, inputs: Mapping[str, Any], count: int) -> dict[str, int]:
        """What metrics are means over, where that is not pairs."""
        if self.objective.mean_over == "pairs":
            return {}
        if self.objective.mean_over == "groups":
            return {"loss": count}
        chosen, rejected = sides_there(inputs)
        both = chosen + rejected - len(inputs["pair_index"])
        return {
            "loss": count,
            **dict.fromkeys(("rewards/chosen", "logps/chosen"), chosen),
            **dict.fromkeys(("rewards/rejected", "logps/rejected"), rejected),
            "rewards/accuracies": both,
            "rewards/margins": int(chosen > 0 and rejected > 0),  # a batch's, as TRL has it
        }

    def _collect(self, inputs: Mapping[str, Any], out: PreferenceLoss) -> None:
        """Gives the collector the values of a batch's pairs."""
        assert self.collector is not None
        values = {"logps": out.logps, "rewards": out.rewards}
        if self.objective.needs_reference:
            assert out.stats.ref_logp is not None, "the objective asks for it"
            values["ref_logps"] = sums_by_pair(
                out.stats.ref_logp,
                inputs["segments"],
                inputs["weights"],
                len(inputs["pair_index"]),
                inputs.get("token_index"),
                self.sequence_group,
            )
        self.collector.add(inputs["pair_index"], values)

    def _reference_terms(
        self, inputs: Mapping[str, Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        """What the loss reads of the reference, as keywords of `fused_preference_loss`."""
        models = self.models
        kept = models.reference_head
        terms = reference_terms(
            inputs, self.objective, models.head, models.reference, kept, **options
        )
        if terms is None:
            raise ConfigError(TOO_LATE)
        return terms
