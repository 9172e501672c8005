"""What a stream of rows to train on excludes, told before anything is read of it."""

from typing import Any

from prefkit.data.sources.iterable import SOME, stream_of
from prefkit.errors import ConfigError


def refuse_stream(args: Any, train_dataset: Any) -> None:
    """Refuses what a stream cannot serve, before anything is read of it.

    Args:
        args: a config that has passed its own checks.
        train_dataset: as given to the trainer.

    Raises:
        ConfigError: a stream without max_steps, or with options that need every row beforehand.
    """
    if stream_of(train_dataset, "train") is None:
        return
    if args.max_steps < 1:
        raise ConfigError(
            "train_dataset is a stream, which has no length, so an epoch has no end. Set max_steps."
        )
    needs_all = ["tokens_per_batch", "precompute_ref_log_probs", "precompute_ref_hidden"]
    needs_all += ["auto_find_batch_size"]
    if found := next((name for name in needs_all if getattr(args, name, None)), None):
        raise ConfigError(
            f"{found} is not supported with IterableDataset: it needs to know the rows beforehand, "
            f"and a stream tells them one by one. Leave {found} out, or give some of the rows: "
            f"{SOME}."
        )
    if args.dataloader_num_workers:
        raise ConfigError(
            "dataloader_num_workers: a stream is read and tokenised in a thread of the training "
            "process, ahead of the step. Leave it out."
        )
    if (order := getattr(args, "train_sampling_strategy", "random")) != "random":
        raise ConfigError(
            f"train_sampling_strategy is {order}, and a stream has the order it comes in (its own "
            ".shuffle(seed=..., buffer_size=...) changes that). Leave train_sampling_strategy out."
        )
