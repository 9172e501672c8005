"""A model for the time of one batch: its own settings, gradients and warnings out of the way."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig

_STOPPING = logging.getLogger("transformers.generation.stopping_criteria")


@contextlib.contextmanager
def bare(model: Any) -> Iterator[None]:
    """Evaluation mode, no gradients, and none of the model's own generation settings.

    Nor a warning of the width: a batch with its padding may be wider than the model's positions,
    and of that transformers warns; no row ever is.
    """
    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    _STOPPING.addFilter(_is_of_no_width)
    try:
        with torch.inference_mode():
            yield
    finally:
        _STOPPING.removeFilter(_is_of_no_width)
        model.generation_config = own
        model.train(training)


def _is_of_no_width(record: logging.LogRecord) -> bool:
    return "the model's predefined maximum length" not in record.getMessage()
