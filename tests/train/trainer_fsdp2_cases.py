"""Runs of the real Trainer, the same in one process and sharded over two."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks.models.float64 import in_double
from benchmarks.models.miniatures import miniature
from prefkit import PreferenceTrainer
from prefkit.model.adapters import REFERENCE
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

STEPS, SAVED = 4, 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        family: of `trainer_cases.tiny_model`, or a type of `benchmarks.models`.
        lora: train an adapter; the reference is the model without it.
        changed: the adapter changes the model from the beginning; the reference is a copy of it.
        head: whether the head learns (without an adapter).
        options: of `PreferenceConfig`, in one process and in two.
        fsdp: `fsdp_config` of the two.
        alone: options of the one process only.
        shared_rows: the two hold a piece of each row (`sequence_parallel_size`).
        trees: rows whose questions have four pairs each.
    """

    family: str = "llama"
    lora: bool = False
    changed: bool = False
    head: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    fsdp: dict[str, Any] = field(default_factory=dict)
    alone: dict[str, Any] = field(default_factory=dict)
    shared_rows: bool = False
    trees: bool = False


SHARDED = {"state_dict_type": "SHARDED_STATE_DICT"}
CASES = {
    "dpo": Case(options={"method": "dpo"}, fsdp=SHARDED),
    "tdpo2": Case(options={"method": "tdpo2"}),
    "tdpo2, each side in full": Case(options={"method": "tdpo2", "layout": "separate"}),
    "tdpo2, rows shared by both": Case(options={"method": "tdpo2"}, shared_rows=True),
    "dpo, lora": Case(options={"method": "dpo"}, lora=True),
    "tdpo2, lora": Case(options={"method": "tdpo2"}, lora=True, fsdp=SHARDED),
    "dpo, lora that was trained": Case(options={"method": "dpo"}, changed=True),
    "tdpo2, a reference that follows": Case(
        options={"method": "tdpo2", "sync_ref_model": True, "ref_model_sync_steps": 1}
    ),
    "tdpo2, tied head": Case(options={"method": "tdpo2"}, family="llama-tied"),
    "tdpo2, frozen head": Case(options={"method": "tdpo2"}, head=False),
    "tdpo2, checkpointed activations": Case(
        options={"method": "tdpo2"}, fsdp={**SHARDED, "activation_checkpointing": True}
    ),
    "tdpo2, layers that read each sequence, checkpointed, rows shared by both": Case(
        options={"method": "tdpo2"},
        family="lfm2",
        fsdp={**SHARDED, "activation_checkpointing": True},
        shared_rows=True,
    ),
    "tdpo2, trees": Case(
        options={"method": "tdpo2", "tokens_per_batch": 48},
        alone={"gradient_accumulation_steps": 4},
        trees=True,
    ),
    "dpo, experts": Case(
        family="mixtral",
        options={"router_aux_loss_coef": 0.5},
        # The routers' loss is one of a batch: two pairs in each, as with two processes.
        alone={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    ),
}


def processes() -> int:
    """Processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def make(case: Case, folder: Path, **changes: Any) -> PreferenceTrainer:
    """The trainer of a case; four pairs a batch over all processes, two batches a step."""
    world = processes()
    changes |= case.alone if world == 1 else {}
    if case.family in {**CONFIGS, **MOE}:
        model = tiny_model(case.family, scale=3.0)
    else:
        model = in_double(miniature(case.family, vocab_size=VOCAB, pad_token_id=None))
    if not case.head:
        model.lm_head.weight.requires_grad_(False)
    if case.lora:
        from peft import LoraConfig

        changes["peft_config"] = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    if case.changed:
        model = changed_adapter(model)
    if world > 1:
        changes |= {"fsdp": True, "fsdp_config": dict(case.fsdp)}
        changes |= {"sequence_parallel_size": world if case.shared_rows else 1}
    options: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4 // world,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.05,  # clips
        "lr_scheduler_type": "cosine",
        "eval_dataset": ROWS[:5],  # neither two processes nor two batches share them evenly
        "per_device_eval_batch_size": 2,
        "eval_strategy": "steps",
        "eval_steps": SAVED,
        "save_strategy": "steps",
        "save_steps": SAVED,
        "use_cpu": True,
    }
    options |= case.options
    if "tokens_per_batch" in options:
        del options["per_device_train_batch_size"], options["per_device_eval_batch_size"]
    return trainer(folder, model, TREE_ROWS if case.trees else None, **{**options, **changes})


def changed_adapter(model: Any) -> Any:
    """A model with an adapter, and its head trained in full, that changes what it computes."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    torch.manual_seed(0)
    adapted = get_peft_model(model, lora)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapted


def whole_weights(trained: PreferenceTrainer) -> dict[str, Tensor]:
    """All parameters by name but a frozen adapter's, gathered; every process must ask."""
    return {
        name.replace("_checkpoint_wrapped_module.", ""): (
            value.full_tensor() if isinstance(value, DTensor) else value
        ).detach()
        for name, value in trained.model.named_parameters()
        if REFERENCE not in name
    }


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Trains to the end, saves, then goes on from the checkpoint in the middle once more.

    Returns:
        logs: lines of training and evaluation; weights and resumed: parameters by name; shards:
        parameters of policy and reference that are DTensors at the end.
    """
    trained = make(case, folder / "run")
    trained.train()
    weights = whole_weights(trained)
    reference = trained.reference
    shards = [
        sum(isinstance(value, DTensor) for value in model.parameters())
        for model in (trained.model, trained.model if reference is None else reference.model)
    ]
    trained.save_model(str(folder / "final"))
    if trained.is_world_process_zero():
        middle = f"checkpoint-{SAVED}"
        shutil.copytree(folder / "run" / middle, folder / "again" / middle)
    trained.accelerator.wait_for_everyone()
    again = make(case, folder / "again")
    again.train(resume_from_checkpoint="auto")
    return {
        "logs": logs_of(trained) + logs_of(trained, "eval_loss"),
        "weights": weights,
        "resumed": whole_weights(again),
        "resumed_at": again.started_at,
        "shards": shards,
    }


def save(result: dict[str, Any], path: Path) -> None:
    """Writes what `run` found (plain values and tensors)."""
    torch.save(result, path)
