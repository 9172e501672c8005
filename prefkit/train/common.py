"""The fields of `transformers.TrainingArguments` that most runs set, for the help.

Reading them from transformers itself would take nine seconds; a test compares the defaults.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class CommonFields:
    """What `prefkit train --help` shows of transformers' options; all others are flags as well."""

    # -- transformers' ---------------------------------------------------------------------------
    num_train_epochs: float = 3.0
    """Epochs: how often the data are read."""
    max_steps: int = -1
    """Optimiser steps; overrides num_train_epochs. -1 = as many as it says."""
    gradient_accumulation_steps: int = 1
    """Batches an optimiser step; the gradient is the large batch's."""
    lr_scheduler_type: str = "linear"
    """Course of the learning rate: linear, cosine, constant, …"""
    warmup_steps: float = 0
    """Steps, or a share of the run below 1, until the peak learning rate."""
    optim: str = "adamw_torch_fused"
    """Optimiser."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    bf16: bool = False
    """Mixed precision in bfloat16."""
    gradient_checkpointing: bool | None = None
    """Recompute activations to save memory; None = no. Its name is activation_checkpointing from
    transformers 5.23 on."""
    use_liger_kernel: bool = False
    """Liger's kernels in the model's body; its loss stays off."""
    fsdp: bool | str | None = None
    """Shard policy and reference over processes by FSDP2: true (docs/sharding.md). None = no."""
    fsdp_config: dict | str | None = None
    """Its settings, as JSON or a file; None = transformers' own."""
    deepspeed: dict | str | None = None
    """JSON file of DeepSpeed ZeRO-3, in place of fsdp; None = no."""
    save_steps: float = 500
    """Steps between two checkpoints."""
    save_total_limit: int | None = None
    """Newest checkpoints to keep; None = all."""
    resume_from_checkpoint: str | bool | None = None
    """auto = newest complete checkpoint, if any; true; or a folder. None = start anew."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to evaluate."""
    eval_steps: float | None = None
    """Steps between two evaluations; None = logging_steps."""
    load_best_model_at_end: bool = False
    """End with the best checkpoint's weights."""
    metric_for_best_model: str | None = None
    """What is best by: loss, rewards/margins, … of an evaluation; None = loss."""
    report_to: str | list[str] | None = "none"
    """wandb, tensorboard, trackio, …"""
    seed: int = 42
    """Seed of everything random."""
