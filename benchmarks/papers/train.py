"""One training run of one method, through the project's own trainers."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.papers.methods import Method, Regime, Setting


def train(
    method: Method,
    setting: Setting,
    regime: Regime,
    rows: Sequence[dict[str, Any]],
    start: Path,
    seed: int,
) -> tuple[Any, Any]:
    """Trains the start of a seed on its rows; what `prefkit train` and `prefkit sft` do.

    Args:
        rows: pairs, or for a supervised method solutions.
        start: folder of the model, which is the reference as well.
        seed: of the order of the rows.

    Returns:
        The trained model and the tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(start)
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "learning_rate": setting.learning_rate,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": max(1, regime.steps // 10),
            "max_steps": regime.steps,
            "per_device_train_batch_size": regime.batch_size,
            "adam_beta2": 0.95,
            "logging_steps": regime.steps,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": seed,
            "output_dir": folder,
        }
        trainer = _trainer(method, setting, model, tokenizer, list(rows), common)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model, tokenizer


def _trainer(
    method: Method,
    setting: Setting,
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    common: dict[str, Any],
) -> Any:
    if method.supervised:
        from prefkit.train.supervised import SupervisedConfig, SupervisedTrainer

        supervised = SupervisedConfig(**common)
        return SupervisedTrainer(
            model, args=supervised, train_dataset=rows, processing_class=tokenizer
        )
    from prefkit.train.config import PreferenceConfig
    from prefkit.train.trainer import PreferenceTrainer

    args = PreferenceConfig(beta=setting.beta, **method.options, **common)
    return PreferenceTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)
