"""`PrefkitTrainer`: what transformers calls of a trainer, each call handed to the part that knows.

A run is made of parts with state of their own: its models, its rows, its loss, a meter, a store of
checkpoints. This class makes the parts known to one another and to Trainer, and overrides what
Trainer would do differently; it decides nothing itself.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from prefkit.data.batch.collators import Layout
from prefkit.data.streamed.rows import StreamedRows
from prefkit.errors import ConfigError
from prefkit.model.head.fused import Head, unwrap
from prefkit.model.reference.policy import Reference
from prefkit.model.router import Router
from prefkit.train import model_card
from prefkit.train.checkpointing import checkpoint
from prefkit.train.checkpointing.checkpoint import newest_until
from prefkit.train.checkpointing.early_stopping import stopping_of
from prefkit.train.checkpointing.store import CheckpointStore, finished
from prefkit.train.checkpointing.whole_weights import load_missing
from prefkit.train.checks.arguments import refuse_data_parallel
from prefkit.train.checks.best_metric import check_best_metric
from prefkit.train.evaluating import EvaluatingTrainer
from prefkit.train.meter import Meter
from prefkit.train.models.noise import noisy_embeddings
from prefkit.train.models.run_models import RunModels
from prefkit.train.rows import streaming
from prefkit.train.rows.datasets import UnwrappingCollator, skipped_rows
from prefkit.train.rows.run_rows import RunRows
from prefkit.train.sharding import fsdp2
from prefkit.train.step.batch_loss import StepLoss, items_of_window


class PrefkitTrainer(EvaluatingTrainer):
    """transformers' Trainer with the head fused, checkpoints complete or refused, FSDP2 exact.

    Subclasses make the parts and hand them over; everything that a trainer has is made here.

    Args:
        args: the run's options.
        models: policy, heads, reference.
        rows: prepares rows to train and evaluate on.
        loss: of one batch.
        data: what to train and what to evaluate on, as `rows` prepared it.
        callbacks, optimizers: as in `transformers.Trainer`.
        compute_metrics: of evaluations, or None; the trainer calls it.
    """

    # The loss is already divided by the items of the whole window (read by transformers ≥ 5.23;
    # `model_accepts_loss_kwargs` says the same to older ones).
    loss_is_scaled_for_ga = True
    args: Any

    def __init__(
        self,
        args: Any,
        models: RunModels,
        rows: RunRows,
        loss: StepLoss,
        data: tuple[Any, Any],
        callbacks: list[TrainerCallback] | None,
        optimizers: tuple[Any, Any],
        compute_metrics: Any = None,
    ) -> None:
        # Before Trainer's own __init__, which calls methods of this class.
        self.models, self.rows, self.loss = models, rows, loss
        folder = Path(args.output_dir or ".")
        self.meter = Meter(args, lambda step: newest_until(folder, step))
        self.checkpoints = CheckpointStore(args, models, self.meter)
        super().__init__(
            model=models.policy,
            args=args,
            data_collator=UnwrappingCollator(rows.collator),  # type: ignore[arg-type]
            train_dataset=data[0],
            eval_dataset=data[1],
            processing_class=rows.tokenizer,
            compute_metrics=compute_metrics,
            callbacks=[*(callbacks or []), *stopping_of(args)],
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = True
        unwrap(models.policy).add_model_tags(model_card.tags_of(args))  # type: ignore[operator]
        self.neftune_noise_alpha = None  # `noisy_embeddings` adds it: Trainer's is one of a row
        refuse_data_parallel(args)

    @property
    def head(self) -> Head:
        """The policy's head."""
        return self.models.head

    @property
    def router(self) -> Router | None:
        """The routers whose balance is trained, None without them."""
        return self.models.router

    @property
    def reference(self) -> Reference | None:
        """The frozen reference; None where the loss reads none, or when it is precomputed."""
        return self.models.reference

    @property
    def layout(self) -> Layout:
        """Of the batches; a data_collator of the user's own makes its own."""
        return self.rows.layout

    @classmethod
    def adds_metrics(cls, compute_metrics: Any = None) -> bool:
        """Whether evaluations may report more than the loss's metrics."""
        return cls.evaluate is not PrefkitTrainer.evaluate or compute_metrics is not None

    @property
    def started_at(self) -> int:
        """The step that the last call of `train` began after."""
        return self.checkpoints.started_at

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains; `resume_from_checkpoint` may be True, "auto" or a folder.

        Raises:
            ConfigError: no rows to train on, nothing complete to resume from (see
                `checkpoint.resolve_resume`), or a metric for the best model that no evaluation
                makes.
            ModelError: the checkpoint was trained against another reference.
        """
        if self.train_dataset is None:
            raise ConfigError(
                "There is no train_dataset: this trainer can only evaluate. Make one with it."
            )
        if not self.adds_metrics(self.compute_metrics):
            names = self.loss.metrics + ([] if self.router is None else ["aux_loss"])
            callbacks = self.callback_handler.callbacks
            check_best_metric(self.args, names, self.eval_dataset, callbacks)
        rows, size = self.train_dataset, self._train_batch_size
        folder = self.checkpoints.resume(resume_from_checkpoint, rows, size)
        if folder is not None and self.checkpoints.is_finished(rows, size):
            self.shard_policy()
            self._load_from_checkpoint(str(folder))
            self.state, result = finished(folder)
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
                self._load_best_model()
            return result
        self.meter.clock.restart()
        found = None if folder is None else str(folder)
        with noisy_embeddings(self.models.policy, self.args.neftune_noise_alpha):
            return super().train(found, trial, ignore_keys_for_eval)

    def get_train_dataloader(self) -> DataLoader:
        """As in Trainer; a stream is not shared out again, since each process has its part of it.

        Raises:
            ConfigError: the processes see the stream in different orders.
        """
        rows = self.train_dataset
        if not isinstance(rows, StreamedRows):
            return super().get_train_dataloader()
        return streaming.stream_loader(rows, self._train_batch_size, self.data_collator, self.args)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """As in Trainer; what it takes of a stream is used when the next checkpoint is made."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        streaming.use(self.train_dataset, batches)
        return batches, items

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """What the mean of the accumulation window runs over."""
        if not batch_samples:
            return None
        return items_of_window(self.loss.count(batch_samples), self.accelerator, device)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """As in Trainer, for each batch of the processes that share rows."""
        step = super().training_step
        losses = [step(model, one, num_items_in_batch) for one in self.loss.turns(inputs)]
        return torch.stack(losses).mean()  # each is the same on every process of the group

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch, or (loss, `RequestOutput`); see `StepLoss` for the arguments."""
        steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        batch = self.loss(model, inputs, num_items_in_batch, steps)
        self.meter.add(batch, model.training)
        return (batch.value, batch.output) if return_outputs else batch.value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics of the window to a log line, for training as for evaluation; a line of
        training also says how many rows were skipped, where any were.

        Raises:
            NotFiniteError: the loss is lost.
        """
        self.meter.complete(logs, self.state.global_step, self.accelerator)
        if "loss" in logs and (skipped := skipped_rows(self.train_dataset, self.accelerator)):
            logs["skipped_rows"] = skipped
        super().log(logs, start_time)

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer does; FSDP2 that was asked for is what comes out.

        Raises:
            ConfigError: accelerate did not take up the FSDP settings.
        """
        fsdp2.reduce_every_batch(self.args)
        super().create_accelerator_and_postprocess()
        if fsdp2.complete_fsdp2(self.accelerator, self.args, self.models):
            self.is_fsdp_enabled = True

    def shard_policy(self) -> None:
        """Shards the policy before training begins: for an evaluation, or to load weights.

        accelerate shards a model only together with its optimiser; training goes on with both.
        """
        if not fsdp2.uses_fsdp2(self.accelerator) or isinstance(self.model, FSDPModule):
            return
        self.create_optimizer()
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.model_wrapped = self.model

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves as Trainer does, then marks the checkpoint complete, then deletes old ones."""
        run_folder = Path(self._get_output_dir(trial=trial))
        folder = run_folder / f"checkpoint-{self.state.global_step}"
        saving = self.checkpoints.saving(folder, self.state, self.train_dataset, self.accelerator)
        with self.meter.pause(), saving:
            super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model; outside checkpoints, no file is ever seen half written."""
        if _internal_call or getattr(self, "deepspeed", None) is not None:
            super().save_model(output_dir, _internal_call)
            return
        # Whole weights whatever checkpoints hold: shards are no model folder.
        sharded = fsdp2.uses_fsdp2(self.accelerator)
        weights = fsdp2.whole_weights(self.model) if sharded else None
        if self.args.should_save:
            target = Path(output_dir or self.args.output_dir or ".")

            def save(folder: str) -> None:
                self._save(folder, weights)
                model_card.put(self, Path(folder), target)

            checkpoint.save_atomically(save, target)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(  # type: ignore[override]  # TRL's arguments
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        **metadata: Any,
    ) -> None:
        """Writes OUTPUT_DIR/README.md, as `save_model` does; see `prefkit.train.model_card`."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir or ".")
            folder.mkdir(parents=True, exist_ok=True)
            model_card.put(self, folder, folder, model_name, dataset_name, tags, **metadata)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.checkpoints.loading = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self.checkpoints.loading = self.state.best_model_checkpoint
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer tells here which weights it did not find: they are loaded or refused."""
        load_missing(self.model, load_result.missing_keys, self.checkpoints.loading)
