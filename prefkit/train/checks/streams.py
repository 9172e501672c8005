"""What a stream of rows excludes, told before anything is read of it."""

from collections.abc import Mapping
from typing import Any

from prefkit.data.sources.iterable import SOME, stream_of
from prefkit.errors import ConfigError


def refuse_streams(args: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Refuses what a stream cannot serve, before anything is read of it.

    Args:
        args: a config that has passed its own checks.
        train_dataset, eval_dataset: as given to the trainer.

    Raises:
        ConfigError: a stream without max_steps, with options that need every row beforehand, or to
            evaluate on.
    """
    several = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval": eval_dataset}
    for name, one in several.items():
        refuse_eval_stream(one, name)
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
            f"{found} needs to know the rows beforehand, and train_dataset is a stream. Leave "
            f"{found} out, or give some of the rows: {SOME}."
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


def refuse_eval_stream(rows: Any, name: str) -> None:
    """Refuses to evaluate on a stream: it may have no end, and every evaluation would differ.

    Raises:
        ConfigError: see above.
    """
    if stream_of(rows, "train") is not None:
        raise ConfigError(
            f"The {name} rows are a stream, which may have no end. Evaluate on some of them: "
            f"{SOME}."
        )
