"""The row that is being read, for parts of a model that are not handed it as a keyword.

`reading` sets it around a whole forward. A layer that is recomputed in the backward runs outside of
that; so layers whose parts need the row set it for themselves, and for what is recomputed of them.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from prefkit.data.batch.spread import ShardedStream
from prefkit.data.batch.stream import Stream
from prefkit.errors import ModelError

Row = Stream | ShardedStream

PREFIX = "prefkit_"  # of the names of our attention implementations
current_row: ContextVar[Row | None] = ContextVar("prefkit_row", default=None)
# The names of modules that read the row of a forward; None outside of one.
_readers: ContextVar[set[str] | None] = ContextVar("prefkit_readers", default=None)


@contextlib.contextmanager
def in_row(row: Row | None) -> Iterator[None]:
    """Inside the block, this is the row that is being read."""
    token = current_row.set(row)
    try:
        yield
    finally:
        current_row.reset(token)


@contextlib.contextmanager
def in_forward(row: Row | None) -> Iterator[None]:
    """Inside the block a model reads this row.

    Raises:
        ModelError: at the end, where nothing read it: each token saw all that lie before it.
    """
    readers: set[str] = set()
    token = _readers.set(readers)
    try:
        with in_row(row):
            yield
    finally:
        _readers.reset(token)
    if row is not None and not readers:
        raise ModelError(
            "The model did not read the batch as a row of several sequences: each would have seen "
            "those before it. Call install_attention(model) and why_not(model, longest) first."
        )


def note_reader(name: str) -> None:
    """A module of this name reads the row."""
    readers = _readers.get()
    if readers is not None:
        readers.add(name)


def hand_down(layer: nn.Module) -> None:
    """Lets a layer's parts know the row, in its forward and whenever that is recomputed."""
    if "_prefkit_row_given" not in layer.__dict__:
        if (before := layer.__dict__.get("forward")) is not None:
            layer._prefkit_unaware_forward = before
        layer.forward = partial(_handing_down, layer)  # a bound method could not be pickled
    layer._prefkit_row_given = False  # type: ignore[assignment]


def keep_to_itself(layer: nn.Module) -> None:
    """Takes `hand_down` back."""
    if layer.__dict__.pop("_prefkit_row_given", None) is not None:
        del layer.__dict__["forward"]
        if (before := layer.__dict__.pop("_prefkit_unaware_forward", None)) is not None:
            layer.forward = before


def _handing_down(self: Any, *args: Any, **kwargs: Any) -> Any:
    inner: Callable[..., Any] = self.__dict__.get("_prefkit_unaware_forward") or MethodType(
        type(self).forward, self
    )
    row: Row | None = kwargs.get("prefkit_stream") or current_row.get()
    if row is None and self._prefkit_row_given and torch._C._current_graph_task_id() != -1:
        raise ModelError(
            f"{type(self).__name__} is recomputed in the backward without the row that it read: "
            "its model does not hand keywords to its layers. Leave gradient_checkpointing out."
        )
    self._prefkit_row_given = row is not None
    with in_row(row), _recomputed_in(self, row):
        return inner(*args, **kwargs)


@contextlib.contextmanager
def _recomputed_in(layer: Any, row: Row | None) -> Iterator[None]:
    """What the layer hands to its checkpointing inside the block is recomputed in the same row."""
    checkpoint = layer.__dict__.get("_gradient_checkpointing_func")
    if checkpoint is None:
        yield
        return

    def aware(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def again(*inputs: Any, **named: Any) -> Any:
            with in_row(row):
                return function(*inputs, **named)

        return checkpoint(again, *args, **kwargs)

    layer._gradient_checkpointing_func = aware
    try:
        yield
    finally:
        layer._gradient_checkpointing_func = checkpoint
