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
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.data.batch.stream import Reach
from prefkit.errors import ModelError
from prefkit.model.attention.by_sequence import Unpacking, mapped, unpack, unpacking_of, walk
from prefkit.model.attention.current_row import hand_down, in_row
from prefkit.model.attention.layer_test import layers_of
from prefkit.model.attention.layout_row import LayoutRow
from prefkit.model.attention.row_mask import RowMask
from prefkit.model.attention.visits import (
    RUN_ERRORS,
    Visit,
    is_of_tokens,
    shares_states,
    token_dims,
    visit_in_fp32,
    visits_of,
)

logger = logging.getLogger(__name__)

_ROUNDS = 24  # kinds of modules that are found one after the other, each at most twice
# Numbers of a token that two orders of the same sums may be apart, as a share of the largest.
_LIMITS = {torch.float64: 1e-4, torch.float32: 1e-3}
_LOOSE = 5e-2  # of half precision


class NotUnpackable(Exception):
    """Why a model cannot be made to read rows, in words."""


def unpack_mixers(model: nn.Module, row: LayoutRow) -> None:
    """Unpacks what must be, in place; `unpackings_of` tells what it was.

    Args:
        model: `install_attention` must have run; in evaluation mode.
        row: small, on the model's device.

    Raises:
        NotUnpackable: a part of the model fails in the row for another reason.
    """
    parts = [part for layer in layers_of(model) for part in layer.children()]
    for _ in range(_ROUNDS):
        visits, error = visits_of(model, parts, row)
        if error is not None:  # all of its class: the next one would fail as well
            visit = _open(visits, error)
            how, kind = _failed(visit, error, row), type(visit.module)
            changed = {part: how for part in parts if type(part) is kind}
        else:
            changed = _others(visits, row)
        if not changed:
            return
        names = {module: name for name, module in model.named_modules()}
        apply_unpackings(model, {names[part]: how for part, how in changed.items()})
    raise NotUnpackable("its layers read neighbours in the row in too many ways")


def apply_unpackings(model: nn.Module, how: Mapping[str, Unpacking]) -> None:
    """Unpacks parts of layers by their names in the model."""
    names = {module: name for name, module in model.named_modules()}
    for layer in layers_of(model):
        for part in layer.children():
            if one := how.get(names[part]):
                unpack(part, one)
                hand_down(layer)


def unpackings_of(model: nn.Module) -> dict[str, Unpacking]:
    """How each part of a model is unpacked that is, by its name."""
    found = {name: unpacking_of(module) for name, module in model.named_modules()}
    return {name: how for name, how in found.items() if how is not None}


def unpack_alike(model: nn.Module, small: nn.Module) -> None:
    """Unpacks all parts of the classes of which any is unpacked in a small model of the kind."""
    kinds = {how.kind: how for how in unpackings_of(small).values()}
    names = {name: kinds.get(_kind(module)) for name, module in model.named_modules()}
    apply_unpackings(model, {name: how for name, how in names.items() if how is not None})


def kinds_of_parts(model: nn.Module) -> set[str]:
    """The names of the classes that the layers of a model are made of."""
    return {_kind(part) for layer in layers_of(model) for part in layer.children()}


def _kind(module: nn.Module) -> str:
    """The class's name; FSDP2 puts a class of its own, `FSDP…`, before it."""
    return next(c.__name__ for c in type(module).__mro__ if not c.__name__.startswith("FSDP"))


def _open(visits: list[Visit], error: Exception) -> Visit:
    """The call that an error ended."""
    found = [visit for visit in visits if not visit.finished]
    if not found:
        raise NotUnpackable(words_of(error)) from error
    return found[-1]


def _failed(visit: Visit, error: Exception, row: LayoutRow) -> Unpacking:
    """How the part that an error ended must be unpacked."""
    before = unpacking_of(visit.module)
    if before is None and not shares_states(visit):
        return _how(visit, row)
    if before is not None and (more := _unknown(visit, before, row)):
        return more
    if before is not None and not before.needs_mask:
        return replace(before, needs_mask=True)
    raise NotUnpackable(f"{_kind(visit.module)}: {words_of(error)}") from error


def _others(visits: list[Visit], row: LayoutRow) -> dict[nn.Module, Unpacking]:
    """How to unpack the parts that return other numbers for their sequences alone."""
    changed: dict[nn.Module, Unpacking] = {}
    for visit in visits:
        module = visit.module
        before = unpacking_of(module)
        if before is not None:
            if more := _unknown(visit, before, row):
                changed[module] = more
        elif is_of_tokens(visit, row):
            how = _how(visit, row)
            alone = _alone(visit, how, row)
            if alone is None or _same(visit.result, alone):
                continue
            # Half precision rounds differently in rows of other lengths: fp32 decides.
            visit = visit_in_fp32(visit, row)
            if not _same(visit.result, _alone(visit, how, row)):
                changed[module] = how
    return changed


def _how(visit: Visit, row: LayoutRow) -> Unpacking:
    """How to unpack a part by the tensors that this call has."""
    dims, given = token_dims(visit, row), {"args": visit.args, "kwargs": visit.kwargs}
    # Numbers that are not positions, (1, N, k): places, such as those that an indexer chose.
    places = any(
        path in dims and x.dim() > 2 and not x.is_floating_point() for path, x in walk(given)
    )
    how = Unpacking(_kind(visit.module), dims, one_batch=places)
    return replace(how, needs_mask=_reads_masks(visit, how, row))


def _reads_masks(visit: Visit, how: Unpacking, row: LayoutRow) -> bool:
    """Whether a part computes otherwise without the mask that a causal attention can do without.

    Tried where every earlier token is seen, whatever the window of the layer: only there a mask may
    be left out at all.
    """

    def everything(_: str, value: Any) -> Any:
        return replace(value, reach=Reach()) if isinstance(value, RowMask) else value

    args, kwargs = mapped(visit.args, everything), mapped(visit.kwargs, everything)
    wide = Visit(visit.module, args, kwargs)
    without, with_mask = (_alone(wide, replace(how, needs_mask=x), row) for x in (False, True))
    if with_mask is None:
        return False
    return without is None or not _same(without, with_mask)


def _unknown(visit: Visit, before: Unpacking, row: LayoutRow) -> Unpacking | None:
    """The same with what this call has and no earlier one had; None: it has nothing new."""
    how = _how(visit, row)
    if not how.token_dims.keys() - before.token_dims.keys():
        return None
    dims = {**before.token_dims, **how.token_dims}
    return replace(before, token_dims=dims, one_batch=before.one_batch or how.one_batch)


def _alone(visit: Visit, how: Unpacking, row: LayoutRow) -> Any:
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
    """An error in words for users; what is no message of ours goes to the log as it is."""
    if isinstance(error, ModelError):
        return str(error).splitlines()[0].rstrip(".")
    logger.info("What failed in a row without padding:", exc_info=error)
    if RowMask.__name__ in str(error):
        return "it computes with its mask by itself"
    return "it fails in a row of several sequences"
