"""A model's windows and other lengths, made shorter than a small test row for a moment."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

SHORT = 8  # a quarter of the test's longest sequence
# Lengths that change no shape of any weight: of configs, and of modules that keep their own copy.
_NAMES = (
    "sliding_window", "attention_chunk_size", "floor_scale", "keep_window_size", "index_topk",
    "index_topk_blocks",
)  # fmt: skip


@contextlib.contextmanager
def short_lengths(model: nn.Module) -> Iterator[None]:
    """Inside the block no layer's window, chunk or floor is longer than 8 tokens.

    A test row of 32 tokens then shows what rows of thousands would: a window that is not kept, a
    scale that follows the place in the row (Llama-4's, from `floor_scale` tokens on).
    """
    owners: dict[int, Any] = {}
    for module in model.modules():
        owners[id(module)] = module
        config = getattr(module, "config", None)
        owners[id(config)] = config
    changed = [
        (owner, name, value)
        for owner in owners.values()
        for name in _NAMES
        if isinstance(value := getattr(owner, "__dict__", {}).get(name), int | float)
        and not isinstance(value, bool)
        and value > SHORT
    ]
    for owner, name, value in changed:
        setattr(owner, name, type(value)(SHORT))
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)
