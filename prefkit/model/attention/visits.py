"""The calls of a model's parts while it reads a small row: what each was given, and returned."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prefkit.errors import ModelError
from prefkit.model.attention.by_sequence import mapped, walk
from prefkit.model.attention.current_row import in_row, note_read
from prefkit.model.attention.install import reading
from prefkit.model.attention.layer_test import as_float, in_fp32
from prefkit.model.attention.layout_row import LayoutRow

RUN_ERRORS = (
    AssertionError, AttributeError, IndexError, KeyError, ModelError, NotImplementedError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass
class Visit:
    """One call of a part of a layer: what it was given, and what it returned unless it failed."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    finished: bool = False


def visits_of(
    model: nn.Module, parts: Sequence[nn.Module], row: LayoutRow
) -> tuple[list[Visit], Exception | None]:
    """The calls of these modules while the model reads the row, and what ended it, if anything."""
    visits: list[Visit] = []
    try:
        with _noting(parts, visits), reading(row.inputs()) as inputs:
            note_read()  # nothing may, before it is unpacked
            model(**inputs)
    except RUN_ERRORS as error:
        return visits, error
    return visits, None


@contextmanager
def _noting(parts: Sequence[nn.Module], visits: list[Visit]) -> Iterator[None]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        visits.append(Visit(module, args, dict(kwargs)))

    def after(module: nn.Module, _: Any, result: Any) -> None:
        last = next(v for v in reversed(visits) if v.module is module and not v.finished)
        last.result, last.finished = result, True

    handles = [part.register_forward_pre_hook(before, with_kwargs=True) for part in parts]
    handles += [part.register_forward_hook(after) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def visit_in_fp32(visit: Visit, row: LayoutRow) -> Visit:
    """The same call of a copy in fp32, in the row; the call itself where it is in fp32 already."""
    result = visit.result[0] if isinstance(visit.result, tuple) else visit.result
    if result.dtype.itemsize >= 4:
        return visit
    part = in_fp32(visit.module)

    def wider(_: str, value: Any) -> Any:
        return as_float(value)

    args, kwargs = mapped(visit.args, wider), mapped(visit.kwargs, wider)
    with in_row(row.stream):
        return Visit(part, args, kwargs, part(*args, **kwargs), finished=True)


def is_of_tokens(visit: Visit, row: LayoutRow) -> bool:
    """Whether it makes something of every token of the row, out of its arguments alone."""
    result = visit.result[0] if isinstance(visit.result, tuple) else visit.result
    tokens = (1, row.ids.shape[1])
    return (
        isinstance(result, Tensor) and result.is_floating_point() and result.shape[:2] == tokens
        and bool(token_dims(visit, row)) and not shares_states(visit)
    )  # fmt: skip


def shares_states(visit: Visit) -> bool:
    """Whether it hands keys and values of the row to later layers, or reads theirs (Gemma-3n, 4).

    Known by a mapping that is filled on the way: empty, of a class of its own, or holding
    (1, heads, N, d). Such a module cannot be run out of turn; the test of layers judges it.
    """
    mappings = [x for x in visit.kwargs.values() if isinstance(x, Mapping)]
    return any(
        not x or type(x) is not dict
        or any(isinstance(y, Tensor) and y.dim() == 4 for _, y in walk(x))
        for x in mappings
    )  # fmt: skip


def token_dims(visit: Visit, row: LayoutRow) -> dict[str, int]:
    """For each tensor that has the row's tokens, by its path, the dimension of these."""
    count, found = row.ids.shape[1], {}
    for path, value in walk({"args": visit.args, "kwargs": visit.kwargs}):
        if not isinstance(value, Tensor):
            continue
        dims = [dim for dim, size in enumerate(value.shape) if size == count]
        single = dims and (value.shape[0] == 1 or value.shape[dims[0] - 1] == 1 or dims[0] == 0)
        if single:
            found[path] = dims[0]
    return found
