"""Every option of a training run that is prefkit's own, without importing anything heavy.

`PreferenceConfig` adds these fields to `transformers.TrainingArguments`; `ScriptArguments` says
what the command line loads. The text under a field is its documentation and its `--help` line.
"""

import ast
import functools
import inspect
import itertools
import textwrap
from dataclasses import dataclass, field
from typing import Literal

from prefkit.options.prompt import PromptFields

METHODS = ("dpo", "step-dpo", "scdpo", "cdpo", "tdpo1", "tdpo2", "simpo")

# Papers' values where they give one (Step-DPO section 4.1, SCDPO section 4, cDPO eq. 9 for the sum
# over a sequence; cDPO's released script for the position-wise form; SimPO section 4).
DEFAULT_BETA = {
    "dpo": 0.1,
    "step-dpo": 0.4,
    "scdpo": 0.1,
    "cdpo": 1.0,
    "tdpo1": 0.1,
    "tdpo2": 0.1,
    "simpo": 2.0,
}
CDPO_POSITION_BETA = 0.1


@dataclass(kw_only=True)
class TextFields(PromptFields):
    """How texts become tokens, of pairs and of single solutions alike."""

    # -- data -----------------------------------------------------------------------------------
    columns: dict | str | None = None
    """Fields that stand in columns of other names, e.g. {"prompt": "question"}; null leaves a
    column out: {"notes": null}."""
    max_length: int | None = None
    """Longest sequence in tokens, prompt included; None = what the model can read."""
    too_long: Literal["error", "skip", "truncate_end"] = "error"
    """Longer sequences: error, skip (counted and listed), or cut the end of whole solutions."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Unusable rows: stop with a message, or skip them (counted and listed in a file)."""
    pad_to_multiple_of: int | None = None
    """Pad batches to a multiple of this many tokens."""


@dataclass(kw_only=True)
class RunFields:
    """How any run computes, and defaults that differ from `transformers.TrainingArguments`."""

    # -- computation ----------------------------------------------------------------------------
    memory_budget: int | None = None
    """Bytes for buffers of logits in the fused head; None = a sensible default."""
    head_backend: Literal["auto", "triton", "torch", "reference"] = "auto"
    """Implementation of the fused head."""
    disable_dropout: bool = True
    """Set the model's dropout to zero (an adapter's own lora_dropout is kept)."""
    router_aux_loss_coef: float | None = None
    """Weight of the routers' load-balancing loss of a mixture of experts, added to the loss and
    logged as aux_loss; None = what the model's config declares, 0 = none."""

    # -- defaults that differ from transformers.TrainingArguments -----------------------------
    output_dir: str | None = None
    """Where checkpoints and the trained model go; None = prefkit-output/METHOD."""
    learning_rate: float = 1e-6
    """Peak learning rate of the optimiser."""
    logging_steps: float = 10
    """Steps between two log lines (below 1: share of the run)."""
    logging_nan_inf_filter: bool = False
    """Hide NaN losses from the log. Off: a NaN should be seen."""
    remove_unused_columns: bool = False
    """Kept off: the collator makes its own columns."""
    per_device_train_batch_size: int = 4
    """Pairs (or solutions, in supervised fine-tuning) a device and forward pass."""
    per_device_eval_batch_size: int = 8
    """The same in evaluation."""


@dataclass(kw_only=True)
class PreferenceFields(TextFields, RunFields):
    """prefkit's part of `PreferenceConfig`."""

    # -- method ---------------------------------------------------------------------------------
    method: Literal["dpo", "step-dpo", "scdpo", "cdpo", "tdpo1", "tdpo2", "simpo"] = "dpo"
    """dpo (2305.18290), step-dpo (2406.18629), scdpo (2407.00782), cdpo (2411.19943), tdpo1 and
    tdpo2 (2404.11999), simpo (2405.14734). step-dpo, scdpo and cdpo are DPO on other tokens."""
    beta: float | None = None
    """Strength of the pull towards the reference. None = the paper's value for the method."""
    alpha: float | None = None
    """TDPO2 only: weight of the sequential KL term; None = 0.5."""
    link: Literal["sigmoid", "robust", "hinge", "ipo"] = "sigmoid"
    """How the margin becomes a loss (DPO family): sigmoid, robust, hinge or ipo."""
    label_smoothing: float = 0.0
    """Probability that a label is flipped, in [0, 0.5); for the links sigmoid and robust."""
    length_normalized: bool = False
    """Mean log-ratio over a side's tokens instead of the sum."""
    reference_free: bool = False
    """Leave the reference out of the loss."""
    margin: float | None = None
    """Target margin subtracted from the difference of rewards (DPO family 0, SimPO 1)."""
    nll_weight: float = 0.0
    """Weight of an added negative log-likelihood of the chosen side (RPO, 2404.19733)."""
    reduction: Literal["sequence", "position"] = "sequence"
    """sequence = the papers' losses; position = cDPO's released code (per aligned token)."""
    positions_per_pair: int | None = None
    """Divisor of reduction "position"; None = the positions of the longer side."""

    # -- data -----------------------------------------------------------------------------------
    level: Literal["step", "solution"] | None = None
    """What a row with a prefix trains: one step, or the continuation to the end of the solution.
    None = step for step-dpo, solution for scdpo; other methods use full_chosen where a row has it
    and ask you otherwise."""
    mask_tool_output: bool = True
    """Treat tool output (execution blocks) as context that is never scored."""
    format: str = "auto"
    """Format of the rows; auto tells it by their fields (`prefkit inspect` shows the result)."""
    block_style: str = "plain"
    """How typed blocks (text, code, execution) are written out: plain or tagged."""

    # -- rows -----------------------------------------------------------------------------------
    layout: Literal["auto", "shared", "separate"] = "auto"
    """shared: each pair is its longest common token prefix, read once, and the rest of both sides.
    separate: each side in full. Both without padding. auto = shared where the model's attention
    allows it, padded rows (and a line that says why) where it does not."""
    tokens_per_batch: int | None = None
    """Most tokens a device and forward pass; as many pairs as fit are packed into one row. Takes
    the place of per_device_train_batch_size and per_device_eval_batch_size."""

    # -- reference ------------------------------------------------------------------------------
    precompute_ref_log_probs: bool = False
    """Compute the reference's per-token log-probabilities once, keep them on disk and free the
    reference. Not for tdpo1 and tdpo2, whose KL needs the whole distribution."""
    precompute_ref_hidden: bool = False
    """For tdpo1 and tdpo2: compute the reference's last hidden states once, keep them on disk (the
    size is printed first) and free all of the reference but its head."""
    precompute_ref_batch_size: int | None = None
    """Pairs a batch while precomputing; None = the evaluation batch size."""
    ref_cache_dir: str | None = None
    """Folder of what is precomputed; None = OUTPUT_DIR/ref_cache."""

    # -- computation ----------------------------------------------------------------------------
    head_passes: Literal["auto", "one_pass", "keep_dz", "two_pass"] = "auto"
    """Make the head's gradient in the forward (one_pass: a frozen head, or one pair a batch), keep
    the gradients by the logits for it (keep_dz: any pairs; tokens x vocabulary numbers), or compute
    its logits again in the backward (two_pass: the least memory). auto decides by bytes."""
    sequence_parallel_size: int = 1
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
class ScriptArguments:
    """What `prefkit train` loads before it hands over to the trainer."""

    model: str = ""
    """Folder or Hub name of the model to train (required)."""
    ref_model: str | None = None
    """Reference model; None = the model as it is before training."""
    tokenizer: str | None = None
    """Folder or Hub name of the tokenizer; None = the model's."""
    train_data: str | list[str] = field(default_factory=list)
    """JSON, JSONL or Parquet file(s) or Hub dataset(s) of pairs (required)."""
    eval_data: str | list[str] | None = None
    """Pairs to evaluate on."""
    train_split: str = "train"
    """Split of a Hub dataset to train on."""
    eval_split: str = "test"
    """Split of a Hub dataset to evaluate on."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Number format the weights are loaded and trained in."""
    attn_implementation: str | None = None
    """Attention: sdpa, eager, flash_attention_2, …; None = the model's default."""
    adapter: Literal["none", "lora"] = "none"
    """lora trains a low-rank adapter; the model without it is the reference."""
    lora_r: int = 16
    """Rank of the adapter."""
    lora_alpha: int = 32
    """Scale of the adapter (over its rank)."""
    lora_dropout: float = 0.0
    """Dropout in front of the adapter."""
    lora_target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter; the head can never be one of them."""


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass and of what it inherits from, read from source."""
    docs: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if "__dataclass_fields__" in vars(one) and one.__module__.startswith("prefkit."):
            docs |= _own_docs(one)
    return docs


def _own_docs(cls: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    docs = {}
    for statement, following in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = following.value.value if isinstance(following, ast.Expr) else ""  # type: ignore[attr-defined]
            docs[statement.target.id] = " ".join(text.split())
    return docs
