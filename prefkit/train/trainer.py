"""`PreferenceTrainer`: transformers' Trainer on preference pairs, with the head fused.

What it adds to Trainer is little: a batch is pairs, the loss is computed on the head's operands
inside the model's own forward, the mean over pairs runs over the whole accumulation window, the
reference is one of `prefkit.model.reference.policy`, and checkpoints are complete or refused.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback

from prefkit.data.batch.collators import Layout, PairCollator
from prefkit.data.pair import PairBatch
from prefkit.model.head.fused import install, unwrap
from prefkit.train.balancing import router_of_run
from prefkit.train.checks.arguments import (
    refuse_data_parallel,
    refuse_missing_eval,
    refuse_unusable,
)
from prefkit.train.checks.best_metric import objective_metrics
from prefkit.train.checks.options import check_machine, check_passes
from prefkit.train.config import PreferenceConfig
from prefkit.train.loss_step import LossTrainer
from prefkit.train.rows.caches import attach_cache, kept_head
from prefkit.train.rows.datasets import UnwrappingCollator, packed, plain
from prefkit.train.rows.layout import choose_layout, longest_sequence
from prefkit.train.rows.streaming import refuse_streams
from prefkit.train.rows.templates import with_trained_template
from prefkit.train.setup import (
    make_reference,
    prepare_dataset,
    prepare_policy,
    reference_fingerprint,
)
from prefkit.train.sharding.sequence_parallel import (
    check_shared_layout,
    check_shared_model,
    join_group,
)

Rows = Any  # a PairDataset, a datasets.Dataset, a list of rows, a path or a list of paths


class PreferenceTrainer(LossTrainer):
    """Trains a causal language model on preference pairs; same call shape as `trl.DPOTrainer`.

    Args:
        model: a causal LM, a PEFT model, or the name or folder of one.
        ref_model: the frozen reference. None: the adapter switched off for PEFT models, a copy of
            the model as it is now otherwise; none is kept where the loss reads none or the
            reference's log-probabilities are precomputed.
        args: a `PreferenceConfig`.
        data_collator: replaces `prefkit.data.PairCollator`; it must return a `PairBatch`.
        train_dataset, eval_dataset: rows of any format prefkit reads (`datasets.Dataset`, list of
            dicts, path(s)) or a prepared `PairDataset`; `eval_dataset` may be a dict of them.
        processing_class: the tokenizer; None = the model's own.
        compute_metrics: refused, because it takes logits, which are never formed.
        callbacks, optimizers: as in `transformers.Trainer`.
        peft_config: wraps the model in this adapter.

    Raises:
        ModelError, RowError, ConfigError: see the modules the work is handed to.
    """

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: nn.Module | None = None,
        args: PreferenceConfig | None = None,
        data_collator: Callable[[list], PairBatch] | None = None,
        train_dataset: Rows = None,
        eval_dataset: Rows | dict[str, Rows] = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = args if args is not None else PreferenceConfig(output_dir="prefkit-output")
        refuse_unusable(
            args, compute_metrics, model, ref_model, processing_class, peft_config, data_collator
        )
        refuse_missing_eval(args, eval_dataset)
        refuse_streams(args, train_dataset, eval_dataset)
        self.objective = args.build_objective()
        self._check_best_metric(args, eval_dataset, callbacks)
        check_machine(args)
        policy, tokenizer = prepare_policy(model, processing_class, peft_config, args)
        self.router = router_of_run(policy, args)
        self.reference = make_reference(policy, ref_model, self.objective, tokenizer, args)
        self.head = install(policy)
        head = self.head.module.parameters()
        check_passes(args, self.objective, any(parameter.requires_grad for parameter in head))
        self._reference_id = reference_fingerprint(self.reference, args)
        self._start_counting()
        self._tokenizer = tokenizer
        train_dataset = self._prepare(args, train_dataset, "train")
        self._tokenizer = tokenizer = with_trained_template(tokenizer, args, plain(train_dataset))
        eval_dataset = self._prepare_eval(args, eval_dataset, train_dataset)
        shared_by = args.sequence_parallel_size
        if shared_by > 1:
            check_shared_model(shared_by, policy.config)
        if data_collator is None:
            self.layout = self._choose_layout(args, policy, train_dataset, eval_dataset)
            multiple = math.lcm(args.pad_to_multiple_of or 1, shared_by)
            data_collator = PairCollator(tokenizer.pad_token_id, multiple, self.layout)
        check_shared_layout(shared_by, self.layout)

        super().__init__(
            model=policy,
            args=args,
            data_collator=UnwrappingCollator(data_collator),  # type: ignore[arg-type]
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = True
        refuse_data_parallel(args)
        self.sequence_group = join_group(args.sequence_parallel_size)
        self._prepare_reference()
        self._pack_rows()

    # -- set-up ----------------------------------------------------------------------------------

    def _prepare(self, args: PreferenceConfig, rows: Rows, name: str) -> Dataset | None:
        if rows is None:
            return None
        return prepare_dataset(rows, self._tokenizer, args, self.head.owner.config, name)

    def _metric_names(self, args: PreferenceConfig) -> list[str]:
        return [*objective_metrics(self.objective), *super()._metric_names(args)[1:]]

    def _longest(self, dataset: Any) -> int:
        return longest_sequence([dataset])

    def _choose_layout(
        self, args: PreferenceConfig, policy: nn.Module, train_dataset: Any, eval_dataset: Any
    ) -> Layout:
        models = [policy]
        if self.reference is not None and unwrap(self.reference.model) is not unwrap(policy):
            models.append(self.reference.model)
        several = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
        datasets = [dataset for dataset in (train_dataset, *several) if dataset is not None]
        return choose_layout(args, models, longest_sequence(datasets))

    def _pack_rows(self) -> None:
        """Packs the datasets into rows of tokens_per_batch, where that is set."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.train_dataset = self._packed(self.train_dataset, seed)
        if isinstance(self.eval_dataset, dict):
            for key, dataset in self.eval_dataset.items():
                self.eval_dataset[key] = self._packed(dataset)
        else:
            self.eval_dataset = self._packed(self.eval_dataset)

    def _packed(self, dataset: Any, seed: int | None = None) -> Any:
        if self.args.tokens_per_batch is None:
            return dataset
        # The collator rounds rows up: to what a multiple leaves of the budget.
        multiple = math.lcm(self.args.pad_to_multiple_of or 1, self.args.sequence_parallel_size)
        budget = self.args.tokens_per_batch // multiple * multiple
        return packed(dataset, budget, self.layout, seed)

    def _prepare_reference(self) -> None:
        """Puts the reference beside the model, or replaces it by its cache."""
        if self.reference is None:
            return
        if self.reference.adapter_owner is None and self.reference.model is not self.model:
            self.reference.model = self.shard_reference(self.reference.model)
        if not self.args.precomputes_reference:
            return
        # One process writes, the others read what is there; in the precision of the training.
        with self.accelerator.main_process_first(), self.accelerator.autocast():
            self.train_dataset = self._with_cache(self.train_dataset, "train")
            if isinstance(self.eval_dataset, dict):
                for key, dataset in self.eval_dataset.items():
                    self.eval_dataset[key] = self._with_cache(dataset, f"eval_{key}")
            else:
                self.eval_dataset = self._with_cache(self.eval_dataset, "eval")
        if self.args.precompute_ref_hidden:
            self.reference_head = kept_head(self.reference, self.head)
        if self.reference.adapter_owner is None:
            self.reference = None  # its memory is the point of precomputing

    def _with_cache(self, dataset: Any, name: str) -> Any:
        if dataset is None:
            return None
        assert self.reference is not None
        return attach_cache(
            dataset, name, self.reference, self.data_collator, self.args, self._reference_id
        )
