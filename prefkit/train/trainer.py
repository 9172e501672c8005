"""`PreferenceTrainer`: transformers' Trainer on preference pairs, with the head fused.

What it adds to Trainer is little: a batch is pairs, the loss is computed on the head's operands
inside the model's own forward, the mean over pairs runs over the whole accumulation window, the
reference is one of `prefkit.model.reference`, and checkpoints are complete or refused.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from prefkit.data.batch import PairCollator
from prefkit.data.pair import PairBatch
from prefkit.errors import ConfigError, ModelError
from prefkit.loss import fused_preference_loss
from prefkit.model.head import install
from prefkit.model.reference import ModelInputs, Reference
from prefkit.objectives import Objective
from prefkit.train import checkpoint
from prefkit.train.arguments import refuse_unusable
from prefkit.train.checks import check_machine, check_precision, check_schedule
from prefkit.train.config import PreferenceConfig
from prefkit.train.metrics import (
    MetricWindow,
    NotFiniteError,
    RewardWatch,
    TokenClock,
    peak_memory_mb,
)
from prefkit.train.resume import ResumableTrainer
from prefkit.train.setup import (
    CachedCollator,
    apply_peft,
    attach_cache,
    disable_dropout,
    make_reference,
    prepare_dataset,
    reference_fingerprint,
)

logger = logging.getLogger(__name__)

Rows = Any  # a PairDataset, a datasets.Dataset, a list of rows, a path or a list of paths


class PreferenceTrainer(ResumableTrainer):
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

    # The loss is already divided by the pairs of the whole window (read by transformers ≥ 5.23;
    # `model_accepts_loss_kwargs`, set below, says the same to older ones).
    loss_is_scaled_for_ga = True
    args: PreferenceConfig
    objective: Objective
    reference: Reference | None

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
        refuse_unusable(args, compute_metrics, model, ref_model, processing_class, peft_config)
        if args.eval_strategy != "no" and eval_dataset is None:
            raise ConfigError(
                "eval_strategy is on, but there is no eval_dataset. Give "
                "one, or leave eval_strategy out."
            )
        check_machine(args)
        policy: Any = model
        if isinstance(model, str):
            policy = AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.float32, trust_remote_code=False
            )
        tokenizer = processing_class or AutoTokenizer.from_pretrained(policy.config.name_or_path)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if getattr(policy.config, "output_router_logits", False):
            logger.warning("The router's auxiliary loss is no part of the preference loss.")
        self.objective = args.build_objective()
        if args.disable_dropout:
            disable_dropout(policy)
        policy = apply_peft(policy, peft_config, args)
        check_precision(policy)
        self.reference = make_reference(policy, ref_model, self.objective, tokenizer, args)
        self.head = install(policy)
        check_schedule(args, self.objective, self.head.module)
        self._reference_id = reference_fingerprint(self.reference, args)
        self._windows = {"train": MetricWindow(), "eval": MetricWindow()}
        self._clock, self._watch = TokenClock(), RewardWatch()
        self._tokenizer = tokenizer

        super().__init__(
            model=policy,
            args=args,
            data_collator=CachedCollator(  # type: ignore[arg-type]
                data_collator or PairCollator(tokenizer.pad_token_id, args.pad_to_multiple_of)
            ),
            train_dataset=self._prepare(args, train_dataset, "train"),
            eval_dataset=self._prepare_eval(args, eval_dataset),
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = True
        if args.n_gpu > 1:
            raise ConfigError(
                f"{args.n_gpu} GPUs are visible to one process, which would cut pairs in two "
                "(DataParallel). Start with torchrun --nproc_per_node, or set CUDA_VISIBLE_DEVICES."
            )
        self._prepare_reference()

    # -- set-up ----------------------------------------------------------------------------------

    def _prepare(self, args: PreferenceConfig, rows: Rows, name: str) -> Dataset | None:
        if rows is None:
            return None
        return prepare_dataset(rows, self._tokenizer, args, self.head.owner.config, name)

    def _prepare_eval(self, args: PreferenceConfig, rows: Rows | dict[str, Rows]) -> Any:
        if isinstance(rows, dict):
            return {key: self._prepare(args, part, f"eval_{key}") for key, part in rows.items()}
        return self._prepare(args, rows, "eval")

    def _prepare_reference(self) -> None:
        """Puts the reference beside the model, or replaces it by its cache."""
        if self.reference is None:
            return
        if self.reference.adapter_owner is None and self.reference.model is not self.model:
            self.reference.model = self.accelerator.prepare_model(
                self.reference.model, evaluation_mode=True
            )
        if not self.args.precompute_ref_log_probs:
            return
        # One process writes, the others read what is there; in the precision of the training.
        with self.accelerator.main_process_first(), self.accelerator.autocast():
            self.train_dataset = self._with_cache(self.train_dataset, "train")
            if isinstance(self.eval_dataset, dict):
                for key, dataset in self.eval_dataset.items():
                    self.eval_dataset[key] = self._with_cache(dataset, f"eval_{key}")
            else:
                self.eval_dataset = self._with_cache(self.eval_dataset, "eval")
        if self.reference.adapter_owner is None:
            self.reference = None  # its memory is the point of precomputing

    def _with_cache(self, dataset: Any, name: str) -> Any:
        if dataset is None:
            return None
        assert self.reference is not None
        return attach_cache(
            dataset, name, self.reference, self.data_collator, self.args, self._reference_id
        )

    # -- loss ------------------------------------------------------------------------------------

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
        rows = inputs.get("rows")
        if rows is None:  # another collator: count here, which stalls a GPU
            rows = (inputs["targets"].reshape(-1) >= 0).nonzero().squeeze(1)
        flat = {key: inputs[key].reshape(-1)[rows] for key in ("targets", "segments", "weights")}
        model_inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        options: dict[str, Any] = {
            "memory_budget": self.args.memory_budget,
            "backend": self.args.head_backend,
        }
        reference = self._reference_terms(inputs, model_inputs, rows, flat["targets"], options)
        transform = self.head.transform

        def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            out = fused_preference_loss(
                hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows),
                weight,
                flat["targets"],
                flat["segments"],
                objective=self.objective,
                weights=flat["weights"],
                num_pairs=num_items_in_batch,
                pairs_in_call=pairs,
                num_scored=inputs.get("num_scored"),
                schedule=self.args.head_schedule,
                bias=bias,
                logit_scale=transform.logit_scale,
                softcap=transform.softcap,
                **reference,
                **options,
            )
            return out.loss, out.metrics

        output = model(**model_inputs, use_cache=False, prefkit_request=request)
        if getattr(output, "value", None) is None:
            raise ModelError(
                f"{type(self.head.owner).__name__}'s forward was replaced after the fused head was "
                "put into it (by another library's patch?), so it formed logits instead. Apply such"
                " patches before PreferenceTrainer is made, or leave them out."
            )
        loss, metrics = output.value, dict(output.extras)
        metrics["loss"] = loss.detach() * (
            (pairs if num_items_in_batch is None else num_items_in_batch) / pairs
        )
        # How much of the text carries the loss: Σ weights over all real tokens.
        metrics["active_weight_fraction"] = flat["weights"].sum() / inputs["attention_mask"].sum()
        self._windows["train" if model.training else "eval"].add(metrics, pairs)
        if model.training:
            self._clock.add(inputs["attention_mask"])
        return (loss, output) if return_outputs else loss

    def _reference_terms(
        self,
        inputs: Mapping[str, Any],
        model_inputs: ModelInputs,
        rows: Tensor,
        targets: Tensor,
        options: dict[str, Any],
    ) -> dict[str, Any]:
        if not self.objective.needs_reference:
            return {}
        if "ref_logp" in inputs:
            return {"ref_logp": inputs["ref_logp"].reshape(-1)[rows]}
        if self.reference is None:
            raise ConfigError(
                "This dataset has no precomputed reference log-probabilities, and the reference "
                "was freed. Pass it to the trainer as eval_dataset from the start, or leave "
                "precompute_ref_log_probs out."
            )
        if self.objective.needs_kl:
            return self.reference.operands(
                model_inputs, rows, self.head.transform, self.head.vocab_size
            )
        # Every row has a target: nothing to look for.
        options = {**options, "num_scored": len(rows)}
        return {"ref_logp": self.reference.logp(model_inputs, rows, targets, **options)}

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
            return self.compute_loss(model, inputs).detach(), None, None

    # -- evaluation and logging ------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As in Trainer; rows of any format are prepared first."""
        # The keys of a dict of evaluation sets are names, too: Trainer evaluates each by its own.
        keys = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else []
        named = isinstance(eval_dataset, str) and eval_dataset in keys
        if eval_dataset is not None and not isinstance(eval_dataset, dict) and not named:
            eval_dataset = self._prepare(self.args, eval_dataset, metric_key_prefix)
        self._eval_prefix = metric_key_prefix
        start = time.perf_counter()
        self._windows["eval"] = MetricWindow()
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._clock.pause(time.perf_counter() - start)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: there are no logits to return.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "predict returns logits, which are never formed. Use evaluate(rows) for the metrics, "
            "or model.generate to write text."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics of the window to a log line, for training as for evaluation."""
        prefix = getattr(self, "_eval_prefix", "eval")
        self._stop_if_not_finite(logs)
        if "loss" in logs:
            means = self._windows["train"].means(self.accelerator)
            # Trainer's own mean over steps is there; ours tells what logging_nan_inf_filter hides.
            self._stop_if_not_finite({"loss": means.pop("loss", 0.0)})
            self._last_good_step = self.state.global_step
            logs.update(means)
            logs["tokens_per_second"] = self._clock.read(self.accelerator)
            logs["num_tokens"] = self._clock.total
            logs["peak_memory_mb"] = peak_memory_mb(self.args.device)
            self._explain(logs)
        elif f"{prefix}_loss" in logs:
            means = self._windows["eval"].means(self.accelerator)
            logs.update({f"{prefix}_{name}": value for name, value in means.items()})
        super().log(logs, start_time)

    def _stop_if_not_finite(self, logs: Mapping[str, float]) -> None:
        """Ends a run whose loss is lost, at its next log line: no extra sync with the device.

        Raises:
            NotFiniteError: the loss, or (where no gradient scaler probes for it) the gradient.
        """
        names = ("loss", "train_loss") if self.args.fp16 else ("loss", "train_loss", "grad_norm")
        bad = [name for name in names if name in logs and not math.isfinite(logs[name])]
        if not bad:
            return
        step, good = self.state.global_step, self._last_good_step
        found = checkpoint.list_checkpoints(Path(self.args.output_dir or "."))
        kept = [
            folder
            for folder in found
            if int(folder.name.split("-")[1]) <= good and checkpoint.problem_with(folder) is None
        ]
        where = f"step {step}" if good + 1 >= step else f"a step from {good + 1} to {step}"
        raise NotFiniteError(
            f"{bad[0]} became {logs[bad[0]]} at {where}; training stopped and the model was not "
            f"saved. The last good checkpoint is {kept[0] if kept else 'none'}. Lower learning_rate"
            " or lengthen warmup_steps; with fp16, use bf16 or float32."
        )

    def _explain(self, logs: dict[str, float]) -> None:
        if "rewards/chosen" not in logs:
            return
        text = self._watch.see(logs["rewards/chosen"], logs["rewards/margins"])
        if text and self.is_world_process_zero():
            logger.warning(text)
