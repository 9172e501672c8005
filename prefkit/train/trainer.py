"""`PreferenceTrainer`: transformers' Trainer on preference pairs, with the head fused.

What it adds to Trainer is little: a batch is pairs, the loss is computed on the head's operands
inside the model's own forward, the mean over pairs runs over the whole accumulation window, the
reference is one of `prefkit.model.reference.policy`, and checkpoints are complete or refused.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from prefkit.convert.trainers.trl import ARGUMENTS as TRL_ARGUMENTS
from prefkit.data.batch.packing import PackedDataset
from prefkit.data.pair import PairBatch
from prefkit.errors import ConfigError
from prefkit.loss.objectives import Objective
from prefkit.model.evaluating import dtypes_of
from prefkit.model.head.fused import install, unwrap
from prefkit.train.base import PrefkitTrainer
from prefkit.train.checks.arguments import refuse_unusable
from prefkit.train.checks.entry import Given, check_run
from prefkit.train.checks.loading import check_quantisation
from prefkit.train.checks.names import named_arguments
from prefkit.train.checks.options import check_passes
from prefkit.train.checks.shared_rows import check_shared_model
from prefkit.train.config import PreferenceConfig
from prefkit.train.models.loading import keywords_of
from prefkit.train.models.policy import prepare_policy
from prefkit.train.models.reference import make_reference, reference_fingerprint
from prefkit.train.models.run_models import RunModels
from prefkit.train.models.synced import SyncReference
from prefkit.train.predictions import PairCollector, PairPredictions, own_metrics
from prefkit.train.rows.caches import TOO_LATE, attach_cache, is_cached, kept_head, name_of
from prefkit.train.rows.datasets import CachedDataset, pairs_of
from prefkit.train.rows.pairs import PairRows
from prefkit.train.sharding.fsdp2 import shard_reference
from prefkit.train.sharding.sequence_parallel import join_group
from prefkit.train.step.balancing import router_of_run
from prefkit.train.step.pair_loss import PairLoss
from prefkit.train.unlike_trl import say_unlike_trl

BESIDE = ("aux_loss", "runtime", "samples_per_second", "steps_per_second")  # of any evaluation
PREDICTING = "Prediction"  # what transformers calls an evaluation that returns its predictions
Rows = Any  # a PairDataset, a datasets.Dataset, a list of rows, a path or a list of paths


@named_arguments(PreferenceConfig, TRL_ARGUMENTS)
class PreferenceTrainer(PrefkitTrainer):
    """Trains a causal language model on preference pairs; same call shape as `trl.DPOTrainer`.

    Args:
        model: a causal LM, a PEFT model, or the name or folder of a model; or the folder of an
            adapter, which goes on training.
        ref_model: the frozen reference, or its name or folder, also that of an adapter. None: the
            model as it is now: for PEFT models the adapter switched off, or a frozen copy of it
            where it has been trained; otherwise a copy of the model. None is kept where the loss
            reads none or the reference's log-probabilities are precomputed.
        args: a `PreferenceConfig`.
        data_collator: replaces `prefkit.data.PairCollator`; it must return a `PairBatch`.
        train_dataset, eval_dataset: rows of any format prefkit reads (`datasets.Dataset` or
            `IterableDataset`, list of dicts, path(s)) or a prepared `PairDataset`; `eval_dataset`
            may be a dict of them. Without rows to train on a trainer evaluates.
        processing_class: the tokenizer; None = the model's own.
        compute_metrics: makes metrics of an evaluation out of its pairs: a function of a
            `PairPredictions` (no logits) that returns a dict of numbers, called on every process.
        callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: how the frozen weights of a model given by name are quantised.
        peft_config: wraps the model in this adapter.

    Raises:
        ModelError, RowError, ConfigError: see the modules the work is handed to.
    """

    loss: PairLoss

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: str | nn.Module | None = None,
        args: PreferenceConfig | None = None,
        data_collator: Callable[[list], PairBatch] | None = None,
        train_dataset: Rows = None,
        eval_dataset: Rows | dict[str, Rows] = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        args = args if args is not None else PreferenceConfig(output_dir="prefkit-output")
        if not isinstance(args, PreferenceConfig):
            raise ConfigError(f"args is a {type(args).__name__}; it must be a PreferenceConfig.")
        refuse_unusable(
            args, compute_metrics, model, ref_model, processing_class, peft_config, data_collator
        )
        quantised = check_quantisation(model, args, quantization_config, peft_config)
        adds_metrics = self.adds_metrics(compute_metrics)
        check_run(args, given=Given(train_dataset, eval_dataset, callbacks, adds_metrics))
        self.objective: Objective = args.build_objective()
        loading = keywords_of(args, quantised)
        policy, tokenizer = prepare_policy(model, processing_class, peft_config, args, loading)
        models = _models_of(policy, ref_model, self.objective, tokenizer, args, loading)
        rows = PairRows(args, tokenizer, models.head.owner, data_collator)
        train_dataset, eval_dataset = rows.prepare(train_dataset, eval_dataset)
        rows.lay_out(_readers(models), train_dataset, eval_dataset)
        loss = PairLoss(args, self.objective, models)
        self.has_trained = False
        data = (train_dataset, eval_dataset)
        super().__init__(args, models, rows, loss, data, callbacks, optimizers, compute_metrics)
        if self.is_world_process_zero():
            kind = dtypes_of(policy)[0]
            say_unlike_trl(args, self.accelerator.mixed_precision, kind)
        loss.sequence_group = join_group(args.sequence_parallel_size)
        self._prepare_reference()
        if models.reference_moves and models.reference is not None:
            self.add_callback(SyncReference(models.reference, lambda: self.model))
        self._each_dataset(lambda rows, name: self.rows.packed(rows, training=name == "train"))

    @property
    def ref_model(self) -> nn.Module | None:
        """The reference where it is a model of its own: None where it is the policy with its
        adapter off, is precomputed, or is not read."""
        reference = self.models.reference
        own = reference is not None and reference.adapter_owner is None
        return reference.model if reference is not None and own else None

    def _prepare_reference(self) -> None:
        """Puts the reference beside the model, or replaces it by its cache."""
        models = self.models
        if models.reference is None:
            return
        if models.reference.adapter_owner is None and models.reference.model is not self.model:
            models.reference.model = shard_reference(self.accelerator, models.reference.model)
        if not self.args.precomputes_reference:
            return
        # One process writes, the others read what is there; in the precision of the training.
        with self.accelerator.main_process_first(), self.accelerator.autocast():
            self._each_dataset(self._with_cache)
        if self.args.precompute_ref_hidden:
            models.reference_head = kept_head(models.reference, models.head)
        if models.reference.adapter_owner is None:
            own = models.reference.model is models.policy
            models.start = models.reference if own else None
            models.reference = None  # its memory is the point of precomputing

    def _with_cache(self, dataset: Any, name: str, moved: bool = False) -> Any:
        reference = self.models.reference or self.models.start
        assert reference is not None
        return attach_cache(
            dataset,
            name,
            reference,
            self.data_collator,
            self.args,
            self.models.reference_id,
            self.layout,
            moved,
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `PrefkitTrainer.train`; from its first step on the policy is no reference."""
        try:
            return super().train(*args, **kwargs)
        finally:  # another call counts from 0 again
            self.has_trained = self.has_trained or self.state.global_step > 0

    def prepare_later(self, rows: Any, name: str) -> Any:
        """See `PrefkitTrainer.prepare_later`; where the reference is precomputed and gone, these
        rows get a cache of their own as long as the policy has not been trained."""
        dataset = self.rows.prepare_later(rows, name, self.train_dataset)
        live = not self.args.precomputes_reference or self.models.reference is not None
        if live or isinstance(dataset, CachedDataset | PackedDataset):
            return self.rows.packed(dataset)
        # Sharded by an evaluation, it could not be run by one process after the other.
        sharded = isinstance(self.model, FSDPModule) or getattr(self, "deepspeed", None) is not None
        moved = self.has_trained or self.state.global_step > 0 or sharded
        name = name_of(dataset)
        if self.models.start is None or (moved and not is_cached(name, self.args)):
            raise ConfigError(TOO_LATE)
        with self.accelerator.main_process_first(), self.accelerator.autocast():
            return self.rows.packed(self._with_cache(dataset, name, moved))

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in Trainer; `predictions` are `PairPredictions` where anybody wants them."""
        wanted = self.compute_metrics is not None or description == PREDICTING
        collector = self.loss.collector = PairCollector() if wanted else None
        try:
            output: Any = super().evaluation_loop(
                dataloader, description, True, ignore_keys, metric_key_prefix
            )
        finally:
            self.loss.collector = None
        if collector is None:
            return output
        rows = [pair.row for pair in pairs_of(dataloader.dataset)]
        predictions = collector.gathered(rows)
        if self.compute_metrics is not None:
            own = [f"{metric_key_prefix}_{name}" for name in (*self.loss.metrics, *BESIDE)]
            made = own_metrics(self.compute_metrics, predictions, metric_key_prefix, own)
            output.metrics.update(made)
        return output._replace(predictions=predictions, label_ids=predictions.label_ids)

    def predict(  # type: ignore[override]  # no tuple of arrays
        self, test_dataset: Rows, ignore_keys: Any = None, metric_key_prefix: str = "test"
    ) -> PairPredictions:
        """Log-probabilities and rewards of every pair, and the metrics of an evaluation of them.

        Args:
            test_dataset: rows of any format.
            ignore_keys: not read: there are no logits.
            metric_key_prefix: of the names in the result's `metrics`.

        Raises:
            ConfigError: several sets in a dict; else see `evaluate`.
        """
        if isinstance(test_dataset, dict):
            raise ConfigError("predict takes the rows of one set. Call it for each of the dict.")
        rows = self.prepare_later(test_dataset, metric_key_prefix)
        with self.meter.evaluation(metric_key_prefix):
            loader = self.get_eval_dataloader(rows)
            output = self.evaluation_loop(loader, PREDICTING, metric_key_prefix=metric_key_prefix)
            metrics: Any = output.metrics
            self.meter.complete(metrics, self.state.global_step, self.accelerator)
        found: Any = output.predictions
        found.metrics = metrics
        self.control = self.callback_handler.on_predict(
            self.args, self.state, self.control, metrics
        )
        return found

    def _each_dataset(self, change: Callable[[Any, str], Any]) -> None:
        """Replaces each dataset that is there by `change(dataset, name)`."""
        if self.train_dataset is not None:
            self.train_dataset = change(self.train_dataset, "train")
        if isinstance(self.eval_dataset, dict):
            for key, dataset in self.eval_dataset.items():
                if dataset is not None:
                    self.eval_dataset[key] = change(dataset, f"eval_{key}")
        elif self.eval_dataset is not None:
            self.eval_dataset = change(self.eval_dataset, "eval")


def _models_of(
    policy: Any,
    ref_model: Any,
    objective: Objective,
    tokenizer: Any,
    args: PreferenceConfig,
    loading: dict[str, Any],
) -> RunModels:
    """The policy with its head fused, and its reference; see `make_reference` for the errors."""
    check_shared_model(args.sequence_parallel_size, policy.config)
    router = router_of_run(policy, args)
    reference = make_reference(policy, ref_model, objective, tokenizer, args, loading)
    head = install(policy)
    trainable = any(parameter.requires_grad for parameter in head.module.parameters())
    check_passes(args, objective, trainable)
    identity = reference_fingerprint(reference, args)
    moves = args.sync_ref_model
    return RunModels(policy, head, router, reference, identity, reference_moves=moves)


def _readers(models: RunModels) -> list[nn.Module]:
    """The models that read the batches: the policy and, if it is another, the reference."""
    reference = None if models.reference is None else models.reference.model
    if reference is None or unwrap(reference) is unwrap(models.policy):
        return [models.policy]
    return [models.policy, reference]
