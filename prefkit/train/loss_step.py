"""The loss of a batch of pairs, computed on the head's operands inside the model's own forward."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.data.batch.spread import cut, gather_batches
from prefkit.data.pair import PairBatch
from prefkit.errors import ConfigError
from prefkit.loss.fused import fused_preference_loss
from prefkit.loss.objectives import Objective
from prefkit.model.reference.head import ReferenceHead
from prefkit.model.reference.policy import Reference
from prefkit.train.config import PreferenceConfig
from prefkit.train.evaluation import EvaluatingTrainer
from prefkit.train.sharding.even_evaluation import counted_pairs


class LossTrainer(EvaluatingTrainer):
    """Replaces Trainer's loss of logits by the objective on pairs.

    The subclass sets `objective`, `reference` and `head` before training.
    """

    # The loss is already divided by the pairs of the whole window (read by transformers ≥ 5.23;
    # `model_accepts_loss_kwargs`, set by the subclass, says the same to older ones).
    loss_is_scaled_for_ga = True
    args: PreferenceConfig
    objective: Objective
    reference: Reference | None
    reference_head: ReferenceHead | None = None  # what is left of a reference that is cached

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Pairs of the accumulation window, averaged over processes.

        The data-parallel mean of gradients divides by the number of processes once more, so the
        sum over all pairs of the window divided by all of them is what comes out.
        """
        if not batch_samples:
            return None
        pairs = float(sum(len(batch["pair_index"]) for batch in batch_samples))
        if self.args.world_size > 1:
            # Left on the device: asking for the number would stall a GPU every step.
            return self.accelerator.gather(torch.tensor([pairs], device=device)).mean()
        return pairs

    def _turns(self, batch: PairBatch) -> Iterator[PairBatch]:
        """The batches that this process has a part in: its own, or pieces of its whole group's."""
        group = self.sequence_group
        if group is None:
            yield batch
        else:
            for one in gather_batches(batch, group):
                yield cut(one, group, self.args.device)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """As in Trainer, for each batch of the processes that share rows."""
        step = super().training_step
        losses = [step(model, one, num_items_in_batch) for one in self._turns(inputs)]  # type: ignore[arg-type]
        return torch.stack(losses).mean()  # each is the same on every process of the group

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective over a batch of pairs.

        Args:
            model: the wrapped policy.
            inputs: a `PairBatch` on the device.
            return_outputs: also return the `RequestOutput`.
            num_items_in_batch: pairs the mean runs over; None = those of this batch.
        """
        pairs = len(inputs["pair_index"])
        rows, targets = inputs["rows"], inputs["targets"]
        options: dict[str, Any] = {
            "memory_budget": self.args.memory_budget,
            "backend": self.args.head_backend,
        }
        reference = self._reference_terms(inputs, options)
        transform = self.head.transform

        def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            out = fused_preference_loss(
                hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows),
                weight,
                targets,
                inputs["segments"],
                objective=self.objective,
                weights=inputs["weights"],
                num_pairs=num_items_in_batch,
                pairs_in_call=pairs,
                sequence_group=self.sequence_group,
                num_scored=inputs.get("num_scored"),
                passes=self.args.head_passes,
                bias=bias,
                logit_scale=transform.logit_scale,
                softcap=transform.softcap,
                **reference,
                **options,
            )
            return out.loss, {**out.metrics, "loss": out.loss.detach()}

        output = self.ask(model, inputs, request, num_items_in_batch)
        loss, metrics = output.value, dict(output.extras or {})
        assert loss is not None
        metrics["loss"] = metrics["loss"] * (
            (pairs if num_items_in_batch is None else num_items_in_batch) / pairs
        )
        # How much of the text carries the loss: Σ weights over the tokens of both sides. Where
        # processes share a row each has its part, and the mean over processes divides by them.
        read = inputs["input_ids"].numel()  # where a collator of the user's own counts nothing
        shared_by = self.args.sequence_parallel_size
        carried = inputs["weights"].sum() * shared_by
        metrics["active_weight_fraction"] = carried / inputs.get("text_tokens", read)
        self.add_metrics(model, metrics, counted_pairs(inputs))
        if model.training:
            self._clock.add(inputs.get("num_tokens", read))
        return (loss, output) if return_outputs else loss

    def _reference_terms(
        self,
        inputs: Mapping[str, Any],
        options: dict[str, Any],
    ) -> dict[str, Any]:
        rows = inputs["rows"]
        if not self.objective.needs_reference:
            return {}
        if "ref_logp" in inputs:
            return {"ref_logp": inputs["ref_logp"]}
        if "ref_hidden" in inputs and self.reference_head is not None:
            return self.reference_head.of_cached(inputs["ref_hidden"])
        if self.reference is None:
            raise ConfigError(
                "This dataset has no precomputed reference, and the reference was freed. Pass it "
                "to the trainer as eval_dataset from the start, or leave precompute_ref_log_probs "
                "and precompute_ref_hidden out."
            )
        if self.objective.needs_kl:
            return self.reference.operands(inputs, rows, self.head.transform, self.head.vocab_size)
        # Every row has a target: nothing to look for.
        options = {**options, "num_scored": len(rows)}
        return {"ref_logp": self.reference.logp(inputs, rows, inputs["targets"], **options)}

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch, without gradient; logits do not exist."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = [self.compute_loss(model, one).detach() for one in self._turns(inputs)]  # type: ignore[arg-type]
        return torch.stack(losses).mean(), None, None
