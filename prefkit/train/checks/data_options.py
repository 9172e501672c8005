"""Options of transformers about rows and batches that this trainer could only ignore, by name.

Which of the others do what they say of themselves is in docs/data.md.
"""

from typing import Any

from prefkit.errors import ConfigError

LABELS = ["targets"]  # what Trainer takes for labels of a batch
# Option → the value that changes nothing, and why another one would have no effect.
_NO_EFFECT: dict[str, tuple[Any, str]] = {
    "batch_eval_metrics": (
        False,
        "compute_metrics gets a few numbers of every pair, which are kept until the end",
    ),
    "eval_do_concat_batches": (True, "compute_metrics gets the pairs of all batches together"),
    "include_for_metrics": ([], "compute_metrics gets values of pairs, no inputs and no losses"),
    "length_column_name": ("length", "lengths are those of the tokens"),
    "average_tokens_across_devices": (
        True,
        "the mean runs over the pairs of all processes, which is exact",
    ),
}
# Of `accelerator_config`: the value that works, and what the other one would do.
_ACCELERATOR: dict[str, tuple[bool, str]] = {
    "dispatch_batches": (
        False,
        "cuts batches in pieces of equal rows, which would cut pairs. Leave it out: every process "
        "reads its own pairs",
    ),
    "split_batches": (
        False,
        "would cut each batch of per_device_train_batch_size into one piece a process. Set a "
        "smaller per_device_train_batch_size instead",
    ),
    "even_batches": (
        True,
        "would give the processes different numbers of batches, and they would wait for each other "
        "for ever. Leave it out (evaluation counts each row once anyway)",
    ),
}
_BY_LENGTH = ("group_by_length", "batch_rebalance")


def check_data_options(config: Any) -> None:
    """Refuses options about rows and batches that would have no effect, or stop a run late.

    Args:
        config: a config that has passed transformers' own checks.

    Raises:
        ConfigError: names the option and what to do.
    """
    for name, (usual, why) in _NO_EFFECT.items():
        if getattr(config, name, usual) != usual:
            raise ConfigError(f"{name} has no effect: {why}. Leave it out.")
    if config.label_names not in (None, LABELS):
        raise ConfigError("label_names has no effect: no labels are read. Leave it out.")
    for name, (usual, what) in _ACCELERATOR.items():
        if (getattr(config.accelerator_config, name) or False) != usual:
            raise ConfigError(f"accelerator_config: {name} {what}.")
    if (order := getattr(config, "train_sampling_strategy", "random")) in _BY_LENGTH:
        raise ConfigError(
            f"train_sampling_strategy is {order}, which saves padding, and rows without padding "
            "have none. Leave it out; tokens_per_batch makes batches of like size."
        )
    if config.dataloader_num_workers == 0:
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            if getattr(config, name, None):
                raise ConfigError(
                    f"{name} has no effect without workers. Set dataloader_num_workers, or leave "
                    "it out."
                )
    if config.auto_find_batch_size and getattr(config, "tokens_per_batch", None):
        raise ConfigError(
            "auto_find_batch_size halves the pairs of a batch when memory runs out, and with "
            "tokens_per_batch a batch is one row. Leave it out, and lower tokens_per_batch."
        )
