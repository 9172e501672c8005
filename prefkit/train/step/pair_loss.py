"""The loss of a batch of pairs, computed on the head's operands inside the model's own forward."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from prefkit.data.batch.spread import cut, gather_batches
from prefkit.data.pair import PairBatch
from prefkit.errors import ConfigError
from prefkit.loss.fused import fused_preference_loss
from prefkit.loss.objectives import Objective
from prefkit.loss.token_metrics import tokens_of_metrics
from prefkit.train.checks.best_metric import objective_metrics
from prefkit.train.config import PreferenceConfig
from prefkit.train.metrics import TokenCount
from prefkit.train.models.run_models import RunModels
from prefkit.train.rows.even_evaluation import counted_pairs
from prefkit.train.step.balancing import balance_of
from prefkit.train.step.batch_loss import BatchLoss, with_balance
from prefkit.train.step.forward import ask_head

_TOKENS = "tokens"  # beside the metrics that a forward brings: over how many tokens some are means


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

    def count(self, batches: list) -> int:
        """Pairs of the batches, or groups of pairs where the loss is one of groups."""
        return sum(map(self._items_of, batches))

    def _items_of(self, batch: Mapping[str, Any]) -> int:
        if not self.objective.needs_groups:
            return len(batch["pair_index"])
        if "groups" not in batch:
            raise ConfigError(
                "link is plackett_luce, but the batch does not say which pairs share their chosen "
                "response: the data_collator leaves it out. Give groups (B,) int64 in each batch, "
                "the number of each pair's group from 0."
            )
        known = batch.get("num_groups")  # a GPU would have to be asked
        return len(batch["groups"].unique()) if known is None else known

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
        count, group = self._items_of(inputs), self.sequence_group
        items = counted_pairs(inputs)
        output = ask_head(
            model,
            inputs,
            self._request(inputs, num_items),
            self.models.head,
            balance_of(self.models.router, inputs, steps, group),
        )
        loss, metrics = output.value, dict(output.extras or {})
        assert loss is not None
        counts: dict[str, int | Tensor] = {"aux_loss": 1, **tokens_of_metrics(metrics.pop(_TOKENS))}
        if self.objective.needs_groups:
            counts["loss"] = count
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

    def _request(self, inputs: Mapping[str, Any], num_items: Any) -> Any:
        """What is computed on the head's operands: the loss, and metrics beside it."""
        positions, targets = inputs["positions"], inputs["targets"]
        options: dict[str, Any] = {
            "memory_budget": self.args.memory_budget,
            "backend": self.args.head_backend,
        }
        reference = self._reference_terms(inputs, options)
        margins = inputs.get("margins") if self.objective.needs_margins else None
        if self.objective.needs_margins and margins is None:
            raise ConfigError(
                "margin_weight is set, but the batch brings no margins: its pairs were prepared "
                "without them, or the data_collator leaves them out. Prepare the pairs with "
                "ReadOptions(margins=True), and give margins (B,) in each batch."
            )
        transform = self.models.head.transform

        def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            out = fused_preference_loss(
                hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions),
                weight,
                targets,
                inputs["segments"],
                objective=self.objective,
                weights=inputs["weights"],
                num_pairs=num_items,
                pairs_in_call=len(inputs["pair_index"]),
                sequence_group=self.sequence_group,
                num_scored=inputs.get("num_scored"),
                passes=self.args.head_passes,
                margins=margins,
                token_index=inputs.get("token_index"),
                one_sided=inputs.get("one_sided", False),
                groups=inputs["groups"] if self.objective.needs_groups else None,
                bias=bias,
                logit_scale=transform.logit_scale,
                softcap=transform.softcap,
                log_entropy=self.args.log_entropy,
                **reference,
                **options,
            )
            return out.loss, {**out.metrics, "loss": out.loss.detach(), _TOKENS: out.tokens}

        return request

    def _reference_terms(
        self, inputs: Mapping[str, Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        """What the loss reads of the reference, as keywords of `fused_preference_loss`."""
        positions, models = inputs["positions"], self.models
        if not self.objective.needs_reference:
            return {}
        if "ref_logp" in inputs:
            return {"ref_logp": inputs["ref_logp"]}
        if "ref_hidden" in inputs and models.reference_head is not None:
            return models.reference_head.of_cached(inputs["ref_hidden"])
        if models.reference is None:
            raise ConfigError(
                "This dataset has no precomputed reference, and the reference was freed. Pass it "
                "to the trainer as eval_dataset from the start, or leave precompute_ref_log_probs "
                "and precompute_ref_hidden out."
            )
        if self.objective.needs_kl:
            head = models.head
            return models.reference.operands(inputs, positions, head.transform, head.vocab_size)
        # Every position has a target: nothing to look for.
        options = {**options, "num_scored": len(positions)}
        return {"ref_logp": models.reference.logp(inputs, positions, inputs["targets"], **options)}
