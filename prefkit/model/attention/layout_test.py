"""Whether a model computes in a row of several sequences what it computes in each alone.

A tree of three sequences and a fourth sequence in one row, against the four one by one under the
attention that the model had before `install_attention` (under ours, a model that looks at the name
of its attention would be compared with itself). In this order:

1. what cannot read such rows is given one sequence at a time (`prefkit.model.attention.mixers`);
2. what the first layer is given is the same (position embeddings);
3. every layer, given the same numbers in fp32, adds the same
(`prefkit.model.attention.layer_test`);
4. the logits differ by no more than ten times what one rounding after every layer does to them.

The third distinguishes rounding from mistakes; the last covers what is between and after the
layers. Meanwhile windows are short, so that the small row is longer than all of them.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.model.attention.current_row import in_row
from prefkit.model.attention.install import as_before, counting, reading
from prefkit.model.attention.layer_test import (
    DRAWS,
    Call,
    LayerCalls,
    Off,
    Unrunnable,
    layer_off,
    layers_of,
    recording,
)
from prefkit.model.attention.layout_row import LayoutRow, spread_ids
from prefkit.model.attention.mixers import NotUnpackable, unpack_mixers, words_of
from prefkit.model.attention.short_lengths import short_lengths
from prefkit.model.attention.visits import RUN_ERRORS
from prefkit.model.evaluating import evaluating
from prefkit.model.head.fused import unwrap

logger = logging.getLogger(__name__)


def mismatch(model: nn.Module, longest: int) -> str | None:
    """What the model computes otherwise in a row of several sequences, in words, or None.

    Args:
        model: `install_attention` must have run. It is left as it was, random state included.
        longest: tokens of the longest sequence of the data.
    """
    owner = unwrap(model)
    name = type(owner).__name__
    device = next(owner.parameters()).device
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with evaluating(owner), forked, short_lengths(owner):
        try:
            return _mismatch(model, owner, longest, device)
        except NotUnpackable as error:
            return f"{name} does not read rows without padding ({error})"
        except RUN_ERRORS as error:
            return f"{name} does not read rows without padding ({words_of(error)})"


def _mismatch(model: nn.Module, owner: nn.Module, longest: int, device: torch.device) -> str | None:
    name, config = type(owner).__name__, owner.config.get_text_config()  # type: ignore[union-attr, operator]
    row = LayoutRow.of(config, longest, device)
    layers = layers_of(owner)
    unpack_mixers(owner, row)
    with reading(row.inputs()) as inputs, counting() as attended, recording(layers) as calls:
        together = model(**inputs).logits
    alone = [_alone(model, row.ids[:, places], layers) for places in row.places]
    what = f"{name} computes something else in rows without padding"
    untried = None
    try:
        if reason := _layers(calls, [seen for _, seen in alone], row, attended, owner):
            return f"{what} ({reason})"
    except Unrunnable as error:
        untried = f"its layers cannot be tried one by one: {error}"
    off = _logits_off(model, together, [logits for logits, _ in alone], row, layers, untried)
    if off.good:
        if untried is not None:
            logger.info("The layout of %s was tested on the whole model only; %s.", name, untried)
        return None
    said = f"what its head returns {off.words('the largest logit')}"
    return f"{what} ({said}{'; ' + untried if untried else ''})"


def _alone(model: nn.Module, ids: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, list[Call]]:
    """(n, V) logits of a sequence under the attention that was replaced, and the layers' calls."""
    with as_before(model), recording(layers) as calls:
        return model(input_ids=ids, use_cache=False).logits[0], calls


def _layers(
    calls: list[Call],
    alone: list[list[Call]],
    row: LayoutRow,
    attended: set[nn.Module],
    owner: nn.Module,
) -> str | None:
    """Which layer is off, by how much and how much is allowed; None: none is.

    Raises:
        Unrunnable: there are no layers to be found or to be run alone.
    """

    calls, *alone = ([call for call in some if call.of_hidden] for some in (calls, *alone))
    order = [call.layer for call in calls]
    if attended - {part for layer in order for part in layer.modules()}:
        raise Unrunnable("some attention is in no list of layers")
    if any([call.layer for call in some] != order for some in alone):
        raise Unrunnable("a sequence alone takes other layers")
    plain = layer_implementation(owner)
    for index, call in enumerate(calls):
        sides = LayerCalls(
            call,
            [some[index] for some in alone],
            row.places,
            lambda: as_before(owner, plain),
            lambda: in_row(row.stream),
        )
        if index == 0 and not (off := _inputs_off(sides)).good:
            return f"what its first layer is given {off.words('its largest value')}"
        off = layer_off(sides)
        if not off.good:
            return f"layer {index} {off.words('the largest value it adds to a token')}"
    return None


def layer_implementation(owner: nn.Module) -> str | None:
    """What fp32 layers attend with by themselves, as far as it is not the model's own.

    FlashAttention knows no fp32; without padding, sdpa computes what it computes.
    """
    base = owner.config.get_text_config()._attn_implementation  # type: ignore[union-attr, operator]
    return "sdpa" if "flash_attention" in base or "/" in base else None


def _inputs_off(sides: LayerCalls) -> Off:
    """How far apart the first layer's inputs are: sums and norms of embeddings, token by token."""
    dim, given = sides.token_dim(), sides.row.hidden
    worst = []
    for places, call in zip(sides.places, sides.alone, strict=True):
        want = call.hidden.movedim(dim, 0).flatten(1).float()
        got = given.index_select(dim, places).movedim(dim, 0).flatten(1).float()
        worst.append(_by_token(got, want).max())
    return Off(float(torch.stack(worst).max()), max(1e-4, 4 * torch.finfo(given.dtype).eps))


def _by_token(got: Tensor, want: Tensor) -> Tensor:
    """(n, C), (n, C) → (n,): the largest difference as a share of the token's largest value."""
    got, want = got.float(), want.float()
    return (got - want).abs().amax(1) / want.abs().amax(1).clamp_min(1e-6)


def _logits_off(
    model: nn.Module,
    together: Tensor,  # (1, N, V)
    alone: list[Tensor],  # (n, V) each
    row: LayoutRow,
    layers: Sequence[nn.Module],
    untried: str | None,
) -> Off:
    """How far the logits are apart; less noise is excused where no layer could be tried alone.

    The worst token counts, but only if it is off with other ids as well: a router near a tie sends
    some tokens elsewhere by rounding, and other ones each time.
    """

    def by_token(got: list[Tensor]) -> Tensor:
        return torch.cat([_by_token(a, b) for a, b in zip(got, alone, strict=True)])

    loose = together.dtype.itemsize < 4
    floor = 5e-2 if loose else 1e-4
    most = (0.2 if loose else 2e-2) if untried else 0.5
    error = by_token([together[0, places] for places in row.places])
    off = Off(float(error.max()), floor)
    if off.good:
        return off
    with _one_rounding_more([unwrap(model).get_input_embeddings(), *layers]):  # type: ignore[operator]
        nudged = [_alone(model, row.ids[:, places], [])[0] for places in row.places]
    noise = float(by_token(nudged).max())
    limit = max(min(10 * noise, most), floor)
    if untried is None:  # a router of one expert makes noise of 0.5 in bf16: its layers are right
        limit = max(limit, 2 * noise)
    config = unwrap(model).config.get_text_config()  # type: ignore[union-attr, operator]
    for draw in range(1, DRAWS + 1):
        if (off := Off(float(error.max()), limit)).good or draw == DRAWS:
            break
        ids = spread_ids(config, row.ids.shape[1], draw).to(row.ids.device)[None]
        row = replace(row, ids=ids)
        with reading(row.inputs()) as inputs:
            together = model(**inputs).logits
        alone = [_alone(model, row.ids[:, places], [])[0] for places in row.places]
        error = torch.minimum(error, by_token([together[0, places] for places in row.places]))
    return off


@contextlib.contextmanager
def _one_rounding_more(modules: list[nn.Module]) -> Iterator[None]:
    """What these modules return is changed by one unit in the last place, up or down at random.

    The model's response is its own noise: what rounding alone, in any order of the same sums on any
    machine, may do to its logits.
    """
    draw = torch.Generator().manual_seed(0)

    def nudge(_: nn.Module, __: Any, out: Any) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return out
        signs = (torch.randint(0, 2, first.shape, generator=draw) * 2 - 1).to(first.device)
        moved = (first.float() * (1 + torch.finfo(first.dtype).eps * signs)).to(first.dtype)
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    handles = [module.register_forward_hook(nudge) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
