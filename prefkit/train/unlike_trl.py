"""Defaults that are not those of `trl.DPOConfig`, told in one line where they are left as they are.

Who comes from TRL knows its defaults, and they decide memory, speed and what is read of a row:

| | TRL 1.16 | prefkit |
| --- | --- | --- |
| `gradient_checkpointing` | on | off |
| precision | bf16 (mixed) | float32 |
| `per_device_train_batch_size` | 8 | 4 |
| `max_length` | 1024, the rest is cut off | none: rows are read whole |
"""

import functools
import logging
from typing import Any

import torch

from prefkit.train.fields import PreferenceFields

logger = logging.getLogger(__name__)

NAMES = ("gradient_checkpointing", "bf16", "per_device_train_batch_size", "max_length")
_CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")  # from transformers 5.23


def say_unlike_trl(args: Any, mixed: str, weights: torch.dtype) -> None:
    """Says which defaults that differ from TRL's apply to a run; the same line once a process.

    Args:
        args: the run's options.
        mixed: mixed precision as accelerate has it: "no", "bf16" or "fp16".
        weights: dtype of the model's weights.
    """
    if found := unlike_trl(args, mixed, weights):
        _say(f"Unlike TRL's defaults: {', '.join(found)}.")


@functools.cache
def _say(line: str) -> None:
    logger.warning(line)


def unlike_trl(args: Any, mixed: str, weights: torch.dtype) -> list[str]:
    """The defaults, in words; see `say_unlike_trl` for the arguments."""
    found = []
    on = any(getattr(args, name, None) for name in _CHECKPOINTING)
    settings = args.fsdp_config if isinstance(args.fsdp_config, dict) else {}
    if not on and not settings.get("activation_checkpointing") and _left(args, *_CHECKPOINTING):
        found.append("no gradient checkpointing")
    if mixed == "no" and weights == torch.float32 and _left(args, "bf16", "fp16", "dtype"):
        found.append("float32")
    if args.tokens_per_batch is None and _left(args, "per_device_train_batch_size"):
        found.append(f"batch {args.per_device_train_batch_size}")
    if args.max_length is None and _left(args, "max_length"):
        found.append("no max_length")
    return found


def _left(args: Any, *names: str) -> bool:
    """Whether options were left out: known on a command line, else whether they are the default."""
    if args.given is not None:
        return not any(name in args.given for name in names)
    defaults = vars(PreferenceFields())
    return all(getattr(args, n, None) in (None, False, defaults.get(n)) for n in names)
