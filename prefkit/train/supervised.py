"""`SupervisedTrainer`: fine-tuning on given solutions, with the head fused as for pairs.

Rows are `prompt`, optional `prefix`, `response`; the loss is the mean negative log-likelihood of
the responses' tokens, end of sequence included, over the whole accumulation window:

    L = −(1 / T) Σ_t log p(y_t | x, y_<t)        T: the response tokens of all batches of the window

in nats a token. What it shares with `PreferenceTrainer`: rendering and tokenisation, rows without
padding, log-probabilities straight from hidden states (never a tokens × vocabulary matrix), and
checkpoints that are complete or refused, from which a killed run goes on to the same weights.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback

from prefkit.data.batch.collators import Layout, SolutionCollator
from prefkit.data.solutions import SolutionDataset, prepare_solutions
from prefkit.data.sources.iterable import stream_of
from prefkit.data.streamed.prepare import stream_solutions
from prefkit.data.streamed.rows import StreamedRows
from prefkit.errors import ConfigError
from prefkit.model.head.fused import install
from prefkit.options.check import check_options
from prefkit.train.balancing import router_of_run
from prefkit.train.checks.arguments import refuse_data_parallel, refuse_kinds, refuse_missing_eval
from prefkit.train.checks.options import check_machine
from prefkit.train.evaluation import EvaluatingTrainer
from prefkit.train.fields import SupervisedFields
from prefkit.train.rows.datasets import UnwrappingCollator
from prefkit.train.rows.layout import choose_layout
from prefkit.train.rows.streaming import refuse_eval_stream, refuse_streams
from prefkit.train.rows.templates import with_trained_template
from prefkit.train.run_config import RunConfig
from prefkit.train.setup import prepare_policy, tokenize_options
from prefkit_kernels import token_stats

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SupervisedConfig(SupervisedFields, RunConfig):
    """Options of supervised fine-tuning: `prefkit.train.fields.SupervisedFields` and
    `transformers.TrainingArguments`. Keyword-only.

    Raises:
        ConfigError: a value out of range, or options that do not go together.
    """

    def __post_init__(self) -> None:
        check_options(self, [SupervisedFields])
        if self.output_dir is None:
            self.output_dir = "prefkit-output/sft"
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor is read by Trainer's own loss, not by this one. Leave it "
                "out."
            )


class SupervisedTrainer(EvaluatingTrainer):
    """Fine-tunes a causal language model on solutions.

    Args:
        model: a causal LM, a PEFT model, or the name or folder of one.
        args: a `SupervisedConfig`.
        train_dataset, eval_dataset: rows with `prompt`, `response` and optionally `prefix` and
            `append_eos` (a path, a `datasets.Dataset`, a list of dicts), or a `SolutionDataset`;
            `eval_dataset` may be a dict of them.
        processing_class: the tokenizer; None = the model's own.
        callbacks, optimizers: as in `transformers.Trainer`.
        peft_config: wraps the model in this adapter.

    Raises:
        ModelError, RowError, ConfigError: see the modules the work is handed to.
    """

    # As in LossTrainer: the loss is already divided by the tokens of the whole window.
    loss_is_scaled_for_ga = True
    args: SupervisedConfig

    def __init__(
        self,
        model: str | nn.Module,
        args: SupervisedConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = args if args is not None else SupervisedConfig()
        if not isinstance(args, SupervisedConfig):
            raise ConfigError(f"args is a {type(args).__name__}; it must be a SupervisedConfig.")
        refuse_kinds(model, processing_class, peft_config)
        refuse_missing_eval(args, eval_dataset)
        refuse_streams(args, train_dataset, eval_dataset)
        self._check_best_metric(args, eval_dataset, callbacks)
        check_machine(args)
        policy, tokenizer = prepare_policy(model, processing_class, peft_config, args)
        self.reference = None
        self.router = router_of_run(policy, args)
        self.head = install(policy)
        self._start_counting()
        self._tokenizer = tokenizer
        train_dataset = self._prepare(args, train_dataset, "train")
        self._tokenizer = tokenizer = with_trained_template(tokenizer, args, train_dataset)
        eval_dataset = self._prepare_eval(args, eval_dataset, train_dataset)
        several = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
        self.layout = self._choose_layout(args, policy, [train_dataset, *several])
        collator = SolutionCollator(tokenizer.pad_token_id, args.pad_to_multiple_of, self.layout)
        super().__init__(
            model=policy,
            args=args,
            data_collator=UnwrappingCollator(collator),  # type: ignore[arg-type]
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = True
        refuse_data_parallel(args)

    # -- set-up ----------------------------------------------------------------------------------

    def _prepare(self, args: SupervisedConfig, rows: Any, name: str) -> Dataset | None:
        if rows is None or isinstance(rows, SolutionDataset | StreamedRows):
            return rows
        text: Any = self.head.owner.config.get_text_config()  # type: ignore[union-attr, operator]
        options = tokenize_options(args, text)
        checks: dict[str, Any] = {
            "vocab_size": text.vocab_size,
            "on_bad_row": args.on_bad_row,
            "skipped_file": Path(args.output_dir or ".") / f"skipped_rows_{name}.jsonl",
            "columns": {} if args.columns is None else args.columns,
        }
        if (stream := stream_of(rows, "train")) is not None:
            if name != "train":
                refuse_eval_stream(stream, name)
            part = (args.process_index, args.world_size)
            return stream_solutions(stream, self._tokenizer, options, part=part, **checks)
        return prepare_solutions(rows, self._tokenizer, options, **checks)

    def _longest(self, dataset: SolutionDataset | StreamedRows) -> int:
        return dataset.longest if isinstance(dataset, StreamedRows) else dataset.report.longest

    def _choose_layout(
        self, args: SupervisedConfig, policy: nn.Module, datasets: list[Any]
    ) -> Layout:
        if args.layout == "padded":
            return "padded"
        longest = max((self._longest(dataset) for dataset in datasets if dataset), default=0)
        found = choose_layout(args, [policy], longest)
        return "padded" if found == "padded" else "separate"

    # -- loss ------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Response tokens of the accumulation window, averaged over processes (see LossTrainer)."""
        if not batch_samples:
            return None
        tokens = float(sum(len(batch["targets"]) for batch in batch_samples))
        if self.args.world_size > 1:
            return self.accelerator.gather(torch.tensor([tokens], device=device)).mean()
        return tokens

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The negative log-likelihood of a batch's responses.

        Args:
            model: the wrapped model.
            inputs: a batch of `SolutionCollator` on the device.
            return_outputs: also return the `RequestOutput`.
            num_items_in_batch: tokens the mean runs over; None = those of this batch.
        """
        rows, targets = inputs["rows"], inputs["targets"]
        tokens, transform = len(targets), self.head.transform
        divisor = tokens if num_items_in_batch is None else num_items_in_batch

        def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            stats = token_stats(
                hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows),
                weight,
                targets,
                bias=bias,
                logit_scale=transform.logit_scale,
                softcap=transform.softcap,
                num_scored=tokens,
                memory_budget=self.args.memory_budget,
                backend=self.args.head_backend,
            )
            assert stats.logp is not None
            total = -stats.logp.sum()
            return total / divisor, {"loss": total.detach() / tokens}

        output = self.ask(model, inputs, request, num_items_in_batch)
        counted = 0 if inputs.get("filler") else tokens
        self.add_metrics(model, dict(output.extras or {}), counted)
        if model.training:
            self._clock.add(inputs["num_tokens"])
        return (output.value, output) if return_outputs else output.value

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
