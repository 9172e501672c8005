"""Evaluation before training: a model that accelerate prepares twice.

Trainer prepares a model to evaluate only where nothing has been prepared before, such as a
reference; without that it would run outside of autocast. And accelerate prepares no model again: a
model that was evaluated first would train without the other processes, each on its own gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")  # what accelerate sets


@contextmanager
def unprepared(trainer: Any) -> Iterator[None]:
    """Inside the block Trainer prepares a model that no training has prepared; then it is again as
    it was. Models that FSDP or DeepSpeed hold are left alone.

    Args:
        trainer: of transformers.
    """
    accelerator, model = trainer.accelerator, trainer.model
    known = [accelerator.unwrap_model(one) for one in accelerator._models]
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if sharded or trainer.is_in_train or any(one is model for one in known):
        yield
        return
    before, wrapped = accelerator._models, trainer.model_wrapped
    marks = {name: vars(model)[name] for name in _MARKS if name in vars(model)}
    accelerator._models = []
    try:
        yield
    finally:
        accelerator._models, trainer.model_wrapped = before, wrapped
        for name in _MARKS:
            vars(model).pop(name, None)
        vars(model).update(marks)
