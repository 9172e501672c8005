"""Every option of a training run that is prefkit's own, without importing anything heavy.

`PreferenceConfig` adds these fields to `transformers.TrainingArguments`; `ScriptArguments` says
what the command line loads. The text under a field is its documentation and its `--help` line.
"""

from dataclasses import dataclass
from typing import Literal

from prefkit.loss.objectives import METHODS, LossOptions
from prefkit.options.option import option
from prefkit.options.prompt import ReadingFields, TextFields
from prefkit.train.model_fields import AdapterFields, LoadingFields, QuantisationFields


@dataclass(kw_only=True)
class RunFields(LoadingFields):
    """How any run computes, and defaults that differ from `transformers.TrainingArguments`."""

    # -- computation ----------------------------------------------------------------------------
    memory_budget: int | None = option(None, at_least=1, free=True)
    """Bytes for buffers of logits in the fused head; None = a sensible default."""
    head_backend: Literal["auto", "triton", "torch", "reference"] = option("auto", free=True)
    """Implementation of the fused head."""
    disable_dropout: bool = True
    """Set the model's dropout to zero (an adapter's own lora_dropout is kept)."""
    router_aux_loss_coef: float | None = option(None, at_least=0)
    """Weight of the routers' load-balancing loss of a mixture of experts, added to the loss and
    logged as aux_loss; None = what the model's config declares, 0 = none."""

    # -- run ------------------------------------------------------------------------------------
    log_entropy: bool = option(False, free=True)
    """Log the mean entropy of the scored tokens' distributions, as TRL does. Off, because it looks
    at the logits once more: 1 to 4 % of the head's forward and backward on a CPU (hidden width 2048
    to 576), 7 % of a forward alone."""
    output_dir: str | None = option(None, free=True)
    """Where checkpoints and the trained model go; None = prefkit-output/METHOD."""
    learning_rate: float = option(1e-6, at_least=0)
    """Peak learning rate of the optimiser."""
    logging_steps: float = option(10, free=True)
    """Steps between two log lines (below 1: share of the run)."""
    logging_nan_inf_filter: bool = option(False, free=True)
    """Hide NaN losses from the log. Off: a NaN should be seen."""
    remove_unused_columns: bool = option(False, free=True)
    """Kept off: the collator makes its own columns."""
    per_device_train_batch_size: int = option(4, at_least=1)
    """Pairs (or solutions, in supervised fine-tuning) a device and forward pass; with link
    plackett_luce rows of data, each with all its rejected responses."""
    per_device_eval_batch_size: int = option(8, at_least=1, free=True)
    """The same in evaluation."""
    early_stopping_patience: int | None = option(None, at_least=1, free=True)
    """Stop when so many evaluations in a row have not improved metric_for_best_model; None = never.
    Needs eval_strategy and load_best_model_at_end."""
    early_stopping_threshold: float = option(0.0, at_least=0, free=True)
    """By how much an evaluation must beat the best one to count as an improvement."""


@dataclass(kw_only=True)
class MethodField:
    """What a run minimises."""

    # -- method ---------------------------------------------------------------------------------
    method: str = option("dpo", choices=tuple(METHODS))
    """The published method: its loss, the tokens that count, and its paper's values
    (docs/objectives.md)."""


@dataclass(kw_only=True)
class PreferenceFields(RunFields, ReadingFields, TextFields, LossOptions, MethodField):
    """prefkit's part of `PreferenceConfig`."""

    # -- data -----------------------------------------------------------------------------------
    level: Literal["step", "solution"] | None = None
    """What a row with a prefix trains: one step, or the continuation to the end of the solution.
    None = step for step-dpo, solution for scdpo; other methods use full_chosen where a row has it
    and ask you otherwise."""

    # -- rows -----------------------------------------------------------------------------------
    layout: Literal["auto", "tree", "shared", "separate"] = "auto"
    """tree: all pairs of a question in a batch as one tree, in which each token is read once.
    shared: each pair by itself, its longest common token prefix read once. separate: each side in
    full. All without padding. auto = tree where the model's attention allows it, padded rows (and a
    line that says why) where it does not."""
    tokens_per_batch: int | None = option(None, at_least=1)
    """Most tokens a device and forward pass; as many pairs as fit are packed into one row. Takes
    the place of per_device_train_batch_size and per_device_eval_batch_size."""
    group_by: Literal["question", "none"] = "question"
    """With tokens_per_batch and trees: question puts all pairs of a question into one row, where
    they cost least (and their gradients, which are alike, come in one step); none deals pairs to
    rows by themselves."""

    # -- reference ------------------------------------------------------------------------------
    precompute_ref_log_probs: bool = option(False, free=True)
    """Compute the reference's per-token log-probabilities once, keep them on disk and free the
    reference. Not for tdpo1 and tdpo2, whose KL needs the whole distribution."""
    precompute_ref_hidden: bool = False
    """For tdpo1 and tdpo2: compute the reference's last hidden states once, keep them on disk (the
    size is printed first) and free all of the reference but its head."""
    precompute_ref_batch_size: int | None = option(None, at_least=1, free=True)
    """Pairs a batch while precomputing; None = the evaluation batch size."""
    ref_cache_dir: str | None = option(None, free=True)
    """Folder of what is precomputed; None = OUTPUT_DIR/ref_cache."""
    sync_ref_model: bool = False
    """Move the reference towards the policy every ref_model_sync_steps steps (TR-DPO, 2404.09656):
    reference = α·policy + (1 − α)·reference, parameter by parameter. Not with an adapter."""
    ref_model_mixup_alpha: float = option(0.6, above=0, at_most=1)
    """α of sync_ref_model; 1 = the reference becomes the policy."""
    ref_model_sync_steps: int = option(512, at_least=1)
    """Optimiser steps between two moves of the reference."""

    # -- computation ----------------------------------------------------------------------------
    head_passes: Literal["auto", "one_pass", "keep_dz", "two_pass"] = option(
        "auto", free=True, formerly="head_schedule"
    )
    """Make the head's gradient in the forward (one_pass: a frozen head, or one pair a batch), keep
    the gradients by the logits for it (keep_dz: any pairs; tokens x vocabulary numbers), or compute
    its logits again in the backward (two_pass: the least memory). auto decides by bytes."""
    sequence_parallel_size: int = option(1, at_least=1)
    """Processes that share each row: every one holds a piece of its tokens, and attention exchanges
    heads for tokens (Ulysses). Must divide the number of processes and of attention heads."""


@dataclass(kw_only=True)
class SupervisedFields(TextFields, RunFields):
    """prefkit's part of `SupervisedConfig`."""

    # -- rows -----------------------------------------------------------------------------------
    layout: Literal["auto", "padded"] = "auto"
    """auto = the solutions of a batch end to end in one row without padding, where the model's
    attention allows it; padded = a row each."""


@dataclass(kw_only=True)
class SourceFields:
    """Models and data by name."""

    model: str = option("", missing="Name the folder or Hub name of the model to train.")
    """Folder or Hub name of the model to train, or folder of an adapter (required)."""
    revision: str | None = None
    """Branch, tag or commit of model and its tokenizer on the Hub; None = its main branch."""
    ref_model: str | None = None
    """Reference model or folder of an adapter; None = the model as it is before training."""
    tokenizer: str | None = None
    """Folder or Hub name of the tokenizer; None = the model's."""
    train_data: str | list[str] = option(
        default_factory=list, missing="Name the file(s) of preference pairs."
    )
    """File(s), folder(s) or Hub dataset(s) (NAME or NAME:CONFIG) of pairs (required)."""
    eval_data: str | list[str] | None = option(None, free=True)
    """Pairs to evaluate on."""
    train_split: str = "train"
    """Split of a dataset to train on; train[:1000] is the first rows of it, or of a file."""
    eval_split: str = option("test", free=True)
    """Split of a dataset to evaluate on."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Number format the weights are loaded and trained in."""
    attn_implementation: str | None = option(None, free=True)
    """Attention: sdpa, eager, flash_attention_2, …; None = the model's default."""


@dataclass(kw_only=True)
class ScriptArguments(AdapterFields, QuantisationFields, SourceFields):
    """What `prefkit train` loads before it hands over to the trainer."""
