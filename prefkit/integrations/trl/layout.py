"""Whether a trainer's models read each pair as one row, their common prefix once.

TRL pads: a prompt is read for the chosen and again for the rejected side, and both to one length.
"""

import logging
from types import SimpleNamespace
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference

from prefkit.data.batch.collators import Layout
from prefkit.errors import ConfigError, ModelError
from prefkit.integrations.trl.collator import Collator
from prefkit.train.rows.layout import choose_layout

logger = logging.getLogger(__name__)


def layout_of(trainer: Any, wanted: str) -> Layout:
    """The layout of a trainer's batches; its models are prepared for it.

    Args:
        wanted: "auto", "shared" or "padded".

    Raises:
        ConfigError, ModelError: "shared" cannot be had.
    """
    if wanted == "padded":
        return "padded"
    reason = _of_the_trainer(trainer)
    longest = _longest(trainer) if reason is None else None
    if longest is None:
        reason = reason or "the lengths of a stream are not known without max_length"
        if wanted == "shared":
            raise ConfigError(f"prefkit_layout: shared cannot be had: {reason}. Leave it at auto.")
        logger.info("Rows are padded as TRL pads them, because %s.", reason)
        return "padded"
    options = SimpleNamespace(layout=wanted, disable_dropout=trainer.args.disable_dropout)
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    try:
        found = choose_layout(options, models, longest)
    except ModelError as error:
        if wanted == "shared":
            raise
        logger.warning("Rows are padded as TRL pads them: %s", error)
        return "padded"
    return "padded" if found == "padded" else "shared"


def _of_the_trainer(trainer: Any) -> str | None:
    """Why batches stay TRL's, whatever the models can read."""
    if type(trainer.data_collator) not in (DataCollatorForPreference, Collator):
        return f"the data_collator is a {type(trainer.data_collator).__name__}"
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return "models are sharded when they are tried"
    if trainer.aux_loss_enabled:
        return "the routers' auxiliary loss counts the tokens of rows as they are"
    if is_peft_model(trainer.model) and trainer.model.active_peft_config.is_prompt_learning:
        return "a prompt-learning adapter puts tokens before each row"
    return None


def _longest(trainer: Any) -> int | None:
    """Tokens that no sequence of the datasets exceeds, or None."""
    if trainer.args.max_length is not None:
        return int(trainer.args.max_length)
    given = trainer.eval_dataset
    datasets = [trainer.train_dataset, *(given.values() if isinstance(given, dict) else [given])]
    longest = 0
    for dataset in datasets:
        if dataset is None:
            continue
        if not isinstance(dataset, Dataset):
            return None
        for row in dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]):
            response = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            longest = max(longest, len(row["prompt_ids"]) + response)
    return longest
