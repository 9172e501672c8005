"""What of a run's options cannot work, found before data and model are loaded.

transformers takes many of these values and fails later, deep inside, or never says so. Every check
names the option and the remedy.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prefkit.errors import ConfigError, ModelError, PrefkitError
from prefkit.loss.objective import Objective
from prefkit.loss.passes import obstacle_to_one_pass
from prefkit.train.checks.machine import need_package

logger = logging.getLogger(__name__)

TRACEBACK = "PREFKIT_TRACEBACK"
FLOAT16 = (
    "dtype is float16, in which the optimiser's steps underflow or destroy the weights. Use "
    "--dtype float32 --fp16 (mixed precision), or --dtype float32 --bf16."
)
_NOT_NEGATIVE = ("weight_decay", "max_grad_norm", "warmup_steps")
_INTERVALS = ("save_steps", "eval_steps")


def check_numbers(config: Any) -> None:
    """Refuses numbers of `transformers.TrainingArguments` that no run can use.

    Raises:
        ConfigError: an accumulation below 1, a negative or infinite rate, a seed that
            the random number generators do not take, no steps or epochs at all.
    """
    if (batches := config.gradient_accumulation_steps) < 1:
        raise ConfigError(f"gradient_accumulation_steps is {batches}; it must be 1 or more.")
    for name in _NOT_NEGATIVE:
        if (value := getattr(config, name, None)) is not None and not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be a finite number, 0 or more.")
    for name in _INTERVALS:
        if (value := getattr(config, name)) is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be positive, or left out.")
    for name in ("seed", "data_seed"):
        if (value := getattr(config, name)) is not None and not 0 <= value < 2**32:
            raise ConfigError(f"{name} is {value}; it must be a whole number from 0 to 2^32 - 1.")
    if config.max_steps != -1 and config.max_steps < 1:
        raise ConfigError(
            f"max_steps is {config.max_steps}; it must be 1 or more, or left out (-1) to train for "
            "num_train_epochs."
        )
    if not 0 < config.num_train_epochs < math.inf:
        raise ConfigError(
            f"num_train_epochs is {config.num_train_epochs}; it must be a positive number."
        )


def check_types(config: Any, names: dict[str, type]) -> None:
    """Refuses a value of another type than its field's, as in `beta="0.1"` from Python.

    Raises:
        ConfigError: text or a bool where a number belongs, or a fraction where a whole one does.
    """
    for name, kind in names.items():
        value = getattr(config, name)
        fits = isinstance(value, int) if kind is int else isinstance(value, int | float)
        if value is not None and (isinstance(value, bool) or not fits):
            what = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{name} is {value!r}, a {type(value).__name__}; it must be {what}.")


def check_loggers(names: list[str]) -> None:
    """Refuses loggers of `report_to` that transformers does not know.

    Raises:
        ConfigError: see above.
    """
    from transformers.integrations import integration_utils as integrations

    known = sorted(integrations.INTEGRATION_TO_CALLBACK)
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ConfigError(
                f"report_to is {name!r}; it must be none or some of: {', '.join(known)}."
            )


def check_packages(config: Any) -> None:
    """Refuses engines that transformers loads as soon as its arguments are made.

    Raises:
        ConfigError: DeepSpeed that is not installed or has no config file.
    """
    if config.deepspeed:
        need_package("deepspeed", "deepspeed")
        file = config.deepspeed
        if isinstance(file, str) and not file.startswith("{") and not Path(file).is_file():
            raise ConfigError(f"deepspeed: there is no config file {file}.")


def check_passes(config: Any, objective: Objective, trainable: bool) -> None:
    """Refuses forced passes that the first batch would refuse.

    Raises:
        ConfigError: head_passes is one_pass or keep_dz, and the loss or the batch does not allow
            it.
    """
    pairs = 2 if config.tokens_per_batch else config.per_device_train_batch_size  # 2: several
    passes = config.head_passes
    obstacle = obstacle_to_one_pass(objective, pairs, passes, trainable, config.head_backend)
    one_pair = "set per_device_train_batch_size to 1 and raise gradient_accumulation_steps"
    if config.tokens_per_batch:
        one_pair = "leave tokens_per_batch out and " + one_pair
    if passes in ("one_pass", "keep_dz") and obstacle:
        helps = passes == "one_pass" and objective.linear is not None
        instead = f", or {one_pair}" if helps else ""
        raise ConfigError(
            f"head_passes is {passes}, which cannot compute this loss: {obstacle}. "
            f"Leave it at auto{instead}."
        )


def check_precision(model: Any, raised: bool = False) -> None:
    """Refuses to train weights kept in float16, and warns of weights kept in bfloat16.

    Adam's second moment and most updates fall below float16's smallest number; bfloat16 keeps 8
    bits, so that an update below about 1/256 of a weight is rounded away.

    Args:
        model: the policy.
        raised: what trains will be kept in fp32 whatever it was loaded in, as accelerate's FSDP2
            does in mixed precision.

    Raises:
        ModelError: a trainable parameter is float16.
    """
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    if torch.float16 in kinds:
        raise ModelError(FLOAT16)
    if torch.bfloat16 in kinds and not raised:
        logger.warning(
            "Weights trained in pure bfloat16 hardly move at small learning rates: most updates "
            "round to nothing. Use --dtype float32 --bf16 for mixed precision."
        )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns what other libraries raise while a run is set up into one line.

    Raises:
        PrefkitError: in place of a ValueError, TypeError, ImportError, OSError or RuntimeError,
            with its type and first line; the original stays attached.
    """
    try:
        yield
    except PrefkitError:
        raise
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise PrefkitError(
            f"{type(error).__name__}: {first} ({TRACEBACK}=1 shows the traceback.)"
        ) from error
