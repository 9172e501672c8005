"""Runs of the real Trainer, the same in one process and in several."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from benchmarks.models.float64 import in_double
from benchmarks.models.miniatures import miniature
from prefkit.train.predictions import PairPredictions
from tests.train.trainer_cases import (
    CONFIGS,
    MOE,
    ROWS,
    TREE_ROWS,
    VOCAB,
    logs_of,
    tiny_model,
    trainer,
)

STEPS, SAVED = 3, 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of four rows a batch over all processes, two batches a step.

    Attributes:
        options: of `PreferenceConfig`, in one process and in several.
        alone: of the one process only.
        together: of the several only.
        processes: how many these are.
        lora: train an adapter; the reference is the model without it.
        family: of `trainer_cases.tiny_model`, or a type of `benchmarks.models`.
        shape: of its config.
        trees: rows whose questions have four pairs each.
    """

    options: dict[str, Any] = field(default_factory=dict)
    alone: dict[str, Any] = field(default_factory=dict)
    together: dict[str, Any] = field(default_factory=dict)
    processes: int = 2
    lora: bool = False
    family: str = "llama"
    shape: dict[str, Any] = field(default_factory=dict)
    trees: bool = False


SHARED = {"sequence_parallel_size": 2, "ddp_find_unused_parameters": False}
SAVING = {"save_strategy": "steps", "save_steps": SAVED}
# The routers' loss is one of a batch: two pairs in each, however many processes there are.
BALANCED: dict[str, Any] = {
    "options": {"router_aux_loss_coef": 0.5, "pad_to_multiple_of": 16},
    "alone": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "family": "mixtral",
}
CASES = {
    "tdpo2": Case(options={"method": "tdpo2", **SAVING}),
    "cached log-probs": Case(options={"precompute_ref_log_probs": True, **SAVING}),
    "a reference that follows": Case(
        options={"method": "tdpo2", "sync_ref_model": True, "ref_model_sync_steps": 1, **SAVING}
    ),
    "shared rows, tdpo2": Case(options={"method": "tdpo2"}, together=SHARED),
    "shared rows, lora": Case(options={"gradient_checkpointing": True}, together=SHARED, lora=True),
    "shared rows, cached hidden states": Case(
        options={"method": "tdpo2", "layout": "separate", "precompute_ref_hidden": True},
        together=SHARED,
    ),
    "kto": Case(options={"method": "kto"}),  # z0 is of both processes
    "experts": Case(**BALANCED),
    "shared rows, experts": Case(**BALANCED, together=SHARED),
    # Two groups of two processes read four packed rows a step, of 12: three steps, no row twice.
    "two groups, packed rows": Case(
        options={"method": "tdpo2", "tokens_per_batch": 40},
        alone={"gradient_accumulation_steps": 4},
        together={**SHARED, "gradient_accumulation_steps": 1},
        processes=4,
    ),
}
# One row a question, in each process its own; and two processes a row.
_TREES: dict[str, Any] = {"tokens_per_batch": 48, "layout": "tree"}
CASES |= {
    "trees": Case(
        options={"method": "tdpo2", **_TREES}, alone={"gradient_accumulation_steps": 4}, trees=True
    ),
    "shared trees": Case(
        options={"method": "tdpo2", **_TREES},
        alone={"gradient_accumulation_steps": 4},
        together=SHARED,
        trees=True,
    ),
    "shared trees, cached log-probs": Case(
        options={"precompute_ref_log_probs": True, **_TREES},
        alone={"gradient_accumulation_steps": 4},
        together=SHARED,
        trees=True,
    ),
    "shared trees, cached hidden states": Case(
        options={"method": "tdpo2", "precompute_ref_hidden": True, **_TREES},
        alone={"gradient_accumulation_steps": 4},
        together=SHARED,
        trees=True,
    ),
}
# One model of each kind of attention, all at once: an adapter, the full KL, packed rows whose
# sequences are longer than the windows, and rows that two processes share.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "windows and sinks": ("gpt_oss", {"sliding_window": 6}),
    "windows and a cap": ("gemma2", {"sliding_window": 6}),
    "chunks, scales by place": ("llama4_text", {"attention_chunk_size": 6, "floor_scale": 6}),
    "latent attention": ("deepseek_v3", {}),
    "chosen keys": ("deepseek_v32", {"index_topk": 6}),
    "delta nets": ("qwen3_next", {}),
    "state spaces": ("nemotron_h", {}),
    "convolutions": ("lfm2", {}),
}
CASES |= {
    f"shared rows, {kind}": Case(
        # Plain descent: Adam would make as much of rounding as of gradients that are nearly 0.
        options={
            "method": "tdpo2",
            "tokens_per_batch": 40,
            "layout": "shared",
            "optim": "sgd",
            "learning_rate": 0.5,
        },
        alone={"gradient_accumulation_steps": 4},
        together=SHARED,
        lora=True,
        family=family,
        shape=shape,
    )
    for kind, (family, shape) in KINDS.items()
}


def model_of(case: Case) -> Any:
    """The model of a case, random and the same each time."""
    if case.family in {**CONFIGS, **MOE} and not case.shape:
        return tiny_model(case.family, scale=3.0)
    # In fp64: rounding must not decide which expert a token goes to.
    return in_double(miniature(case.family, vocab_size=VOCAB, pad_token_id=None, **case.shape))


def of_pairs(predictions: PairPredictions) -> dict[str, float]:
    """Metrics that need every pair once, in the order of the rows, on every process."""
    places = np.arange(len(predictions.margins))
    return {
        "pairs": len(places),
        "rows_in_order": float((predictions.rows == places).mean()),
        "by_place": float((places * predictions.chosen_logps).mean()),
        "spread": float(predictions.margins.std()),
    }


def run(case: Case, folder: Path, processes: int) -> dict[str, Any]:
    """Trains and evaluates.

    Returns:
        logs: the lines of training; eval: that of evaluation; weights: the sum of each parameter's
        absolute values, by name.
    """
    options: dict[str, Any] = {"gradient_accumulation_steps": 2, **case.options}
    options |= case.alone if processes == 1 else case.together
    if "tokens_per_batch" not in options:
        options.setdefault("per_device_train_batch_size", 4 // processes)
    if case.lora:
        from peft import LoraConfig

        targets: Any = ["q_proj", "v_proj"] if case.family == "llama" else "all-linear"
        options["peft_config"] = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    model = model_of(case)
    rows = TREE_ROWS if case.trees else ROWS
    trained = trainer(
        folder,
        model,
        rows,
        max_steps=STEPS,
        eval_dataset=datasets.Dataset.from_list(rows[:7]).to_iterable_dataset(num_shards=2),
        compute_metrics=of_pairs,
        use_cpu=True,
        **options,
    )
    trained.evaluate(rows[7:12])  # a precomputed reference needs to see them now
    trained.train()
    evaluation = trained.evaluate() | trained.evaluate(rows[7:12], metric_key_prefix="later")
    weights = {
        name.removeprefix("module."): parameter.detach().double().abs().sum().item()
        for name, parameter in trained.model.named_parameters()
    }
    return {"logs": logs_of(trained), "eval": evaluation, "weights": weights}
