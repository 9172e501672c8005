"""Finds the modules of a model that must be given one sequence at a time, by trying each.

A small row of three sequences goes through the model. Each part of each layer (attention, recurrent
mixer, feed-forward, norm …) is then given what it read there once more, sequence by sequence. What
returns other numbers than in the row looked at neighbours in it. What cannot run in a row at all,
because it computes with a mask or with places of its own, shows by its error. Both are unpacked
(`prefkit.model.attention.by_sequence`); attention that reads the stream itself stays as it is.

Nothing here is believed: `prefkit.model.attention.layout_test` compares the whole model afterwards.
"""

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.errors import ModelError
from prefkit.model.attention.by_sequence import Unpacking, unpack, unpacking_of, walk
from prefkit.model.attention.current_row import hand_down, in_row
from prefkit.model.attention.install import reading
from prefkit.model.attention.layer_test import layers_of
from prefkit.model.attention.layout_row import LayoutRow

logger = logging.getLogger(__name__)

_ROUNDS = 24  # kinds of modules that are found one after the other, each at most twice
# Numbers of a token that two orders of the same sums may be apart, as a share of the largest.
_LIMITS = {torch.float64: 1e-4, torch.float32: 1e-3}
_LOOSE = 5e-2  # of half precision
RUN_ERRORS = (
    AssertionError, AttributeError, IndexError, KeyError, ModelError, NotImplementedError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


class NotUnpackable(Exception):
    """Why a model cannot be made to read rows, in words."""


@dataclass
class _Visit:
    """One call of a part of a layer: what it was given, and what it returned unless it failed."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    finished: bool = False


def unpack_mixers(model: nn.Module, row: LayoutRow) -> list[str]:
    """Unpacks what must be, in place, and tells the names of its classes.

    Args:
        model: `install_attention` must have run; in evaluation mode.
        row: small, on the model's device.

    Raises:
        NotUnpackable: a part of the model fails in the row for another reason.
    """
    layers = layers_of(model)
    parts = [part for layer in layers for part in layer.children()]
    found: dict[str, Unpacking] = {}
    for _ in range(_ROUNDS):
        visits, error = _visits(model, parts, row)
        how = _failed(visits, error, found, row) if error else _other(visits, found, row)
        if how is None:
            break
        found[how.kind] = how
        apply_unpackings(model, [how])
    else:
        raise NotUnpackable("its layers read neighbours in the row in too many ways")
    return sorted(found)


def apply_unpackings(model: nn.Module, how: Iterable[Unpacking]) -> None:
    """Unpacks every part of a layer whose class is named."""
    by_kind = {one.kind: one for one in how}
    for layer in layers_of(model):
        for part in layer.children():
            if one := by_kind.get(_kind(part)):
                unpack(part, one)
                hand_down(layer)


def unpackings_of(model: nn.Module) -> list[Unpacking]:
    """How each class of a model's parts is unpacked, those that are, by their names."""
    found = {one.kind: one for m in model.modules() if (one := unpacking_of(m)) is not None}
    return [found[kind] for kind in sorted(found)]


def kinds_of_parts(model: nn.Module) -> set[str]:
    """The names of the classes that the layers of a model are made of."""
    return {_kind(part) for layer in layers_of(model) for part in layer.children()}


def _kind(module: nn.Module) -> str:
    """The class's name; FSDP2 puts a class of its own, `FSDP…`, before it."""
    return next(c.__name__ for c in type(module).__mro__ if not c.__name__.startswith("FSDP"))


def _visits(
    model: nn.Module, parts: Sequence[nn.Module], row: LayoutRow
) -> tuple[list[_Visit], Exception | None]:
    """The calls of these modules while the model reads the row, and what ended it, if anything."""
    visits: list[_Visit] = []
    with _noting(parts, visits), reading(row.inputs()) as inputs:
        try:
            model(**inputs)
        except RUN_ERRORS as error:
            return visits, error
    return visits, None


@contextmanager
def _noting(parts: Sequence[nn.Module], visits: list[_Visit]) -> Iterator[None]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        visits.append(_Visit(module, args, dict(kwargs)))

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


def _failed(
    visits: list[_Visit], error: Exception, found: dict[str, Unpacking], row: LayoutRow
) -> Unpacking:
    """How the part that did not finish must be unpacked."""
    open_visits = [visit for visit in visits if not visit.finished]
    if not open_visits:
        raise NotUnpackable(words_of(error)) from error
    visit = open_visits[-1]
    before = found.get(_kind(visit.module))
    if before is None:
        return _how(visit, row)
    if more := _unknown(visit, before, row):
        return more
    if not before.needs_mask:
        return replace(before, needs_mask=True)
    raise NotUnpackable(f"{type(visit.module).__name__}: {words_of(error)}") from error


def _other(visits: list[_Visit], found: dict[str, Unpacking], row: LayoutRow) -> Unpacking | None:
    """How the first part must be unpacked that returns other numbers for its sequences alone."""
    for visit in visits:
        if before := found.get(_kind(visit.module)):
            if more := _unknown(visit, before, row):
                return more
            continue
        if not _is_of_tokens(visit, row):
            continue
        how = _how(visit, row)
        for attempt in (how, replace(how, needs_mask=True)):
            alone = _alone(visit, attempt, row)
            if alone is not None:
                break
        if alone is not None and not _same(visit.result, alone):
            return attempt
    return None


def _is_of_tokens(visit: _Visit, row: LayoutRow) -> bool:
    """Whether it makes something of every token of the row."""
    result = visit.result[0] if isinstance(visit.result, tuple) else visit.result
    tokens = (1, row.ids.shape[1])
    return (
        isinstance(result, Tensor) and result.is_floating_point() and result.shape[:2] == tokens
        and bool(_token_dims(visit, row))
    )  # fmt: skip


def _token_dims(visit: _Visit, row: LayoutRow) -> dict[str, int]:
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


def _how(visit: _Visit, row: LayoutRow) -> Unpacking:
    """How to unpack a part by the tensors that this call has."""
    dims, given = _token_dims(visit, row), {"args": visit.args, "kwargs": visit.kwargs}
    # Numbers that are not positions, (1, N, k): places, such as those that an indexer chose.
    places = any(
        path in dims and x.dim() > 2 and not x.is_floating_point() for path, x in walk(given)
    )
    return Unpacking(_kind(visit.module), dims, one_batch=places)


def _unknown(visit: _Visit, before: Unpacking, row: LayoutRow) -> Unpacking | None:
    """The same with what this call has and no earlier one had; None: it has nothing new."""
    how = _how(visit, row)
    if not how.token_dims.keys() - before.token_dims.keys():
        return None
    dims = {**before.token_dims, **how.token_dims}
    return replace(before, token_dims=dims, one_batch=before.one_batch or how.one_batch)


def _alone(visit: _Visit, how: Unpacking, row: LayoutRow) -> Any:
    """What the part returns of the same arguments sequence by sequence; None: it does not run."""
    part = copy.copy(visit.module)  # its own forward, the same weights
    part.__dict__ = dict(visit.module.__dict__)
    unpack(part, how)
    try:
        with in_row(row.stream):
            kwargs = {k: v for k, v in visit.kwargs.items() if k != "prefkit_stream"}
            return part.forward(*visit.args, **kwargs)
    except RUN_ERRORS as error:
        logger.info("%s sequence by sequence:", type(part).__name__, exc_info=error)
        return None


def _same(got: Any, want: Any) -> bool:
    got, want = (x[0] if isinstance(x, tuple) else x for x in (got, want))
    if not isinstance(want, Tensor) or got.shape != want.shape:
        return True  # what it returns is nothing of tokens: the test of layouts will tell
    limit = _LIMITS.get(got.dtype, _LOOSE)
    off = (got.double() - want.double()).abs().flatten(2).amax(-1)
    largest = want.double().abs().flatten(2).amax(-1).clamp_min(1e-12)
    return bool((off <= limit * largest).all())


def words_of(error: BaseException) -> str:
    """The first line of an error: its own words if it is ours, else with its kind."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return first if isinstance(error, ModelError) else f"{type(error).__name__}: {first}"
