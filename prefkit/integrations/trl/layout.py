"""Whether a trainer's models read each pair as one row, their common prefix once.

TRL pads: a prompt is read for the chosen and again for the rejected side, and both to one length.
"""

import logging
from types import SimpleNamespace
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from trl.trainer.dpo_trainer import DataCollatorForPreference

from prefkit.data.batch.collators import Layout
from prefkit.errors import ConfigError, ModelError
from prefkit.integrations.trl.collator import Collator
from prefkit.integrations.trl.rows import lengths_of
from prefkit.train.rows.layout import choose_layout

logger = logging.getLogger(__name__)


def layout_of(trainer: Any, wanted: str) -> Layout:
    """The layout of a trainer's batches, said in a line; its models are prepared for it.

    Args:
        wanted: "auto", "shared" or "padded".

    Raises:
        ConfigError, ModelError: "shared" cannot be had.
    """
    if wanted == "padded":
        say_padded(trainer, "prefkit_layout is padded")
        return "padded"
    reason = _of_the_trainer(trainer)
    longest = _longest(trainer) if reason is None else None
    if longest is None:
        reason = reason or "the lengths of a stream are not known without max_length"
        if wanted == "shared":
            raise ConfigError(f"prefkit_layout: shared cannot be had: {reason}. Leave it at auto.")
        say_padded(trainer, reason)
        return "padded"
    options = SimpleNamespace(layout=wanted, disable_dropout=trainer.args.disable_dropout)
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    try:
        found = choose_layout(options, models, longest, option="prefkit_layout")
    except ModelError as error:
        if wanted == "shared":
            raise
        logger.warning("Rows are padded as TRL pads them: %s", error)
        return "padded"
    if found == "padded":  # why has been said
        return "padded"
    if trainer.accelerator.num_processes == 1:
        # There is nothing to share out, and accelerate would still cut the batches of a stream.
        trainer.accelerator.dataloader_config.dispatch_batches = False
    _say(trainer, "A pair is read as one row, its common prefix once.")
    return "shared"


def why_cut(trainer: Any, *given: Any) -> str | None:
    """Why accelerate cuts batches along their rows, which TRL's padded ones alone can bear.

    In several processes, one of them reads a stream for all, unless dispatch_batches is False, as
    TRL has it for a stream to train on: then each process reads its own.

    Args:
        given: datasets, dicts of datasets by name, or None.
    """
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1 or accelerator.dataloader_config.dispatch_batches is False:
        return None
    for one in given:
        several = one.values() if isinstance(one, dict) else [one]
        if any(isinstance(dataset, IterableDataset) for dataset in several):
            return "in several processes the batches of a stream are cut along their rows"
    return None


def say_padded(trainer: Any, reason: str) -> None:
    """One line: rows are TRL's, and why."""
    _say(trainer, f"Rows are padded as TRL pads them, because {reason}.")


def _say(trainer: Any, words: str) -> None:
    """A line that is seen where nobody has set up logging: a warning, by one process."""
    if trainer.is_world_process_zero():
        logger.warning("%s", words)


def _of_the_trainer(trainer: Any) -> str | None:
    """Why batches stay TRL's, whatever the models can read."""
    args = trainer.args
    if type(trainer.data_collator) not in (DataCollatorForPreference, Collator):
        return f"the data_collator is a {type(trainer.data_collator).__name__}"
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return "models are sharded when they are tried"
    if trainer.aux_loss_enabled:
        return "the routers' auxiliary loss counts the tokens of rows as they are"
    if is_peft_model(trainer.model) and trainer.model.active_peft_config.is_prompt_learning:
        return "a prompt-learning adapter puts tokens before each row"
    if args.accelerator_config.dispatch_batches:
        return "dispatch_batches of accelerator_config cuts batches along their rows"
    if args.neftune_noise_alpha is not None:
        return "neftune_noise_alpha scales its noise by the length of a row"
    if args.torch_compile:
        return "torch_compile would compile rows without padding anew in each step"
    return why_cut(trainer, trainer.train_dataset, trainer.eval_dataset)


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
        longest = max(longest, int(lengths_of(dataset).max(initial=0)))
    return longest
