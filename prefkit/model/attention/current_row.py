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
import torch.distributed as dist
from torch import nn

from prefkit.data.batch.spread import ShardedStream
from prefkit.data.batch.stream import Stream
from prefkit.errors import ModelError

Row = Stream | ShardedStream

PREFIX = "prefkit_"  # of the names of our attention implementations
current_row: ContextVar[Row | None] = ContextVar("prefkit_row", default=None)
# Filled by whatever reads the row of a forward; None outside of one.
_read: ContextVar[list[bool] | None] = ContextVar("prefkit_read", default=None)
_COVERED = "_prefkit_covered_forward"  # an attribute: a forward of the module's own, or None


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
    read: list[bool] = []
    token = _read.set(read)
    try:
        with in_row(row):
            yield
    finally:
        _read.reset(token)
    if row is not None and not read:
        raise ModelError(
            "The model did not read the batch as a row of several sequences: each would have seen "
            "those before it. Call install_attention(model) and why_not(model, longest) first."
        )


def note_read() -> None:
    """The row is read, as one of several sequences."""
    read = _read.get()
    if read is not None:
        read.append(True)


def trees_and_group(row: Row) -> tuple[Stream, dist.ProcessGroup | None]:
    """The trees of a whole row, and the processes that hold pieces of it, if any."""
    return (row.stream, row.group) if isinstance(row, ShardedStream) else (row, None)


def cover_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """`forward(module, …)` runs in place of the module's own forward; called again, nothing new.

    Raises:
        ModelError: another forward covers it already: it is a layer and a part of one.
    """
    above = module.__dict__.get("forward")
    if _COVERED in module.__dict__ and above.func is not forward:  # type: ignore[union-attr]
        raise ModelError(f"{type(module).__name__} is a layer and a part of another one")
    if _COVERED not in module.__dict__:
        module.__dict__[_COVERED] = above
        module.forward = partial(forward, module)  # a bound method could not be pickled


def covered_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward that `cover_forward` replaced."""
    return module.__dict__[_COVERED] or MethodType(type(module).forward, module)


def uncover_forward(module: nn.Module) -> None:
    """Takes `cover_forward` back, if it was called."""
    if _COVERED in module.__dict__:
        del module.__dict__["forward"]
        if (before := module.__dict__.pop(_COVERED)) is not None:
            module.forward = before


def hand_down(layer: nn.Module) -> None:
    """Lets a layer's parts know the row, in its forward and whenever that is recomputed."""
    cover_forward(layer, _handing_down)
    layer._prefkit_row_given = False  # type: ignore[assignment]


def _handing_down(self: Any, *args: Any, **kwargs: Any) -> Any:
    row: Row | None = kwargs.get("prefkit_stream") or current_row.get()
    if row is None and self._prefkit_row_given and torch._C._current_graph_task_id() != -1:
        raise ModelError(
            f"{type(self).__name__} is recomputed in the backward without the row that it read: "
            "its model does not hand keywords to its layers. Leave gradient_checkpointing out."
        )
    self._prefkit_row_given = row is not None
    with in_row(row), _recomputed_in(self, row):
        return covered_forward(self)(*args, **kwargs)


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
