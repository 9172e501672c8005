"""`EvaluatingTrainer`: what transformers calls of a trainer to evaluate.

Rows of any format are prepared first, and every item counts once however many processes share them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from prefkit.errors import ConfigError
from prefkit.model.fsdp_units import release
from prefkit.train.meter import Meter
from prefkit.train.rows.even_evaluation import evened
from prefkit.train.rows.run_rows import RunRows
from prefkit.train.sharding.early_evaluation import unprepared
from prefkit.train.step.batch_loss import StepLoss


class EvaluatingTrainer(Trainer):
    """The half of `PrefkitTrainer` that evaluates; it makes none of its parts."""

    args: Any
    rows: RunRows
    loss: StepLoss
    meter: Meter

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As in Trainer; rows of any format, or a dict of several, are prepared first.

        Raises:
            ConfigError: sequences longer than the layout, chosen at the beginning, can hold; chats
                written with another template than the one that trains; a stream without an end;
                rows whose reference is gone.
        """
        if isinstance(eval_dataset, dict):
            sets = {f"{metric_key_prefix}_{key}": rows for key, rows in eval_dataset.items()}
            # All before the first: evaluating may shard the model that a reference is made of.
            ready = {name: self.prepare_later(rows, name) for name, rows in sets.items()}
            found = (self.evaluate(rows, ignore_keys, name) for name, rows in ready.items())
            return {name: value for metrics in found for name, value in metrics.items()}
        # The keys of a dict of evaluation sets are names, too: Trainer evaluates each by its own.
        keys = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else []
        named = isinstance(eval_dataset, str) and eval_dataset in keys
        if eval_dataset is not None and not named:
            eval_dataset = self.prepare_later(eval_dataset, metric_key_prefix)
        with self.meter.evaluation(metric_key_prefix):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def prepare_later(self, rows: Any, name: str) -> Any:
        """Rows to evaluate on that come when the run is set up, as a loader takes them.

        Args:
            rows: of any format; those that are prepared pass through.
            name: what messages call them.

        Raises:
            ConfigError: see `evaluate`.
        """
        return self.rows.packed(self.rows.prepare_later(rows, name, self.train_dataset))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in Trainer, with every item counted once however many processes share them."""
        before, size = self.eval_dataset, self.args.eval_batch_size * self.args.world_size
        self.eval_dataset, asked = evened(before, eval_dataset, size)
        try:
            return super().get_eval_dataloader(asked)
        finally:
            self.eval_dataset = before

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As in Trainer; a model that no training has sharded yet is sharded first."""
        self.shard_policy()
        with unprepared(self):
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        model: Any = self.model
        release(model)  # the last layers stay gathered for a backward that does not come
        real = getattr(dataloader.dataset, "real", output.num_samples)
        return output._replace(num_samples=real)

    def shard_policy(self) -> None:
        """Shards a policy that training would shard, where none has begun."""

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch, without gradient; logits do not exist."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            losses: list[Any] = [self.compute_loss(model, one) for one in self.loss.turns(inputs)]
        return torch.stack(losses).mean(), None, None

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: there are no logits to return.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "predict returns logits, which are never formed. Use evaluate(rows) for the metrics, "
            "or model.generate to write text."
        )
