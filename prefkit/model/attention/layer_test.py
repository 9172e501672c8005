"""Each layer of a model by itself: one row of several sequences against each sequence alone.

Rounding grows from layer to layer, and how much depends on the model: one limit for whole models
either refuses good ones or passes bad ones. So every layer gets the same numbers in both cases
(what it read in the row, and the slices of that), in a copy of this one layer in fp32. What is left
is one layer's rounding, below 1e-5 of what it adds in right models of any depth and dtype; layers
that compute something else were off by 5e-2 or more.
"""

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

NO_NUMBER = "holds NaN or infinity"
LIMIT = 1e-4  # of what a layer adds to a token
MOST = 2e-2  # of the same: up to here a layer may be excused by its own rounding
# A router at a tie may choose otherwise by rounding alone, but not again from other inputs.
DRAWS = 2
_JITTER = 1e-2


class Unrunnable(Exception):
    """Layers that cannot be run by themselves, with the reason."""


class Off(NamedTuple):
    """How far two computations of the same are apart, and how far they may be."""

    figure: float
    limit: float

    @property
    def good(self) -> bool:
        """False for a figure that is no number."""
        return self.figure < self.limit

    def words(self, of: str) -> str:
        """What to say of what was computed: the figure, a share `of` something, and its limit."""
        if not math.isfinite(self.figure):
            return f"{NO_NUMBER}; look for them in the weights"
        return f"is off by {self.figure:.1e} of {of}, limit {self.limit:.0e}"


@dataclass(frozen=True)
class Call:
    """What a layer was called with in a forward."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def of_hidden(self) -> bool:
        """Whether it was given hidden states."""
        found = self.args[0] if self.args else self.kwargs.get("hidden_states")
        return isinstance(found, Tensor) and found.is_floating_point()

    @property
    def hidden(self) -> Tensor:
        """The hidden states: the first argument, positional or by name."""
        found = self.args[0] if self.args else self.kwargs.get("hidden_states")
        if not isinstance(found, Tensor) or not self.of_hidden:
            raise Unrunnable(f"{type(self.layer).__name__} is not given hidden states first")
        return found


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The elements of the outermost lists of modules: a model's layers, among others."""
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside:
            lists.append(name)
    return [layer for name in lists for layer in model.get_submodule(name).children()]


@contextlib.contextmanager
def recording(layers: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """The calls of these layers inside the block, in order."""
    calls: list[Call] = []

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(layer, args, dict(kwargs)))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class LayerCalls:
    """One layer's call in the row and in each sequence alone, in the order of the model.

    Attributes:
        row: the call in the row.
        alone: the call in each sequence.
        places: the positions of each sequence's tokens in the row.
        as_before: a block in which the model attends as it did before anything was installed.
        in_row: a block in which the row is read, for parts that are not handed it as a keyword.
    """

    row: Call
    alone: Sequence[Call]
    places: Sequence[Tensor]
    as_before: Callable[[], contextlib.AbstractContextManager[None]]
    in_row: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    def token_dim(self) -> int:
        """The dimension of the hidden states that counts tokens."""
        row, one = self.row.hidden.shape, self.alone[0].hidden.shape
        differ = [dim for dim, sizes in enumerate(zip(row, one, strict=True)) if len({*sizes}) > 1]
        if len(differ) != 1 or row[differ[0]] < max(int(p.max()) for p in self.places) + 1:
            raise Unrunnable(f"{type(self.row.layer).__name__} is given no token by token input")
        return differ[0]


def layer_off(sides: LayerCalls) -> Off:
    """How far a layer in the row is from itself in each sequence alone, given the same numbers.

    Returns:
        The largest difference of a token as a share of the largest number that the layer adds to
        it, the rounding of that sum left out. The limit is 1e-4, or, where the layer's own
        response to a change of its inputs by one rounding is larger, ten times that, up to 2e-2.
    Raises:
        Unrunnable: the layer cannot be copied, or run by itself.
    """
    try:
        return _layer_off(sides)
    except (
        AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        logger.info("A layer by itself:", exc_info=error)
        raise Unrunnable(f"{type(sides.row.layer).__name__} does not run by itself") from error


def _layer_off(sides: LayerCalls) -> Off:
    dim = sides.token_dim()
    layer = in_fp32(sides.row.layer)
    given = sides.row.hidden.float()
    draw = torch.Generator().manual_seed(0)
    best: Off | None = None
    for attempt in range(DRAWS):
        if attempt:
            given = sides.row.hidden.float() * (1 + _JITTER * _signs(given, draw))
        with sides.in_row():
            row = _run(layer, sides.row, given)
        slices = [given.index_select(dim, places) for places in sides.places]
        with sides.as_before():
            wants = [_run(layer, c, x) for c, x in zip(sides.alone, slices, strict=True)]
        gots = [row.index_select(dim, places) for places in sides.places]
        off = Off(_apart(gots, wants, slices, dim), LIMIT)
        if LIMIT <= off.figure < MOST:
            eps = torch.finfo(torch.float32).eps
            nudged = [x * (1 + eps * _signs(x, draw)) for x in slices]
            with sides.as_before():
                others = [_run(layer, c, x) for c, x in zip(sides.alone, nudged, strict=True)]
            noise = _apart(others, wants, slices, dim)
            off = Off(off.figure, min(max(10 * noise, LIMIT), MOST))
        if off.good:
            return off
        if best is None or off.figure < best.figure:
            best = off
    assert best is not None
    return best


def _signs(like: Tensor, draw: torch.Generator) -> Tensor:
    """±1 at random, of the same shape; drawn on the CPU from a generator of its own."""
    return (torch.randint(0, 2, like.shape, generator=draw) * 2 - 1).to(like.device, like.dtype)


def _apart(gots: list[Tensor], wants: list[Tensor], given: list[Tensor], dim: int) -> float:
    """The worst token's largest difference, as a share of the largest number added to it."""
    worst = []
    for got, want, x in zip(gots, wants, given, strict=True):
        # Both sides round the sum of what came in and what is added; where that sum is large
        # (outliers of 1e4 beside contributions of 1), that alone would look like a mistake.
        rounding = 4 * torch.finfo(torch.float32).eps * want.abs()
        differ = ((got - want).abs() - rounding).clamp_min(0)
        off, added = (y.movedim(dim, 0).flatten(1).amax(1) for y in (differ, (want - x).abs()))
        worst.append((off / added.clamp_min(1e-30)).max())
    return float(torch.stack(worst).max())  # a NaN stays one


def in_fp32(layer: nn.Module) -> nn.Module:
    """The layer itself if it is in fp32, else a copy that is."""
    tensors = [*layer.parameters(), *layer.buffers()]
    if any(x.is_meta for x in tensors):
        raise Unrunnable(f"{type(layer).__name__} holds no weights here")
    if all(x.dtype == torch.float32 for x in tensors if x.is_floating_point()):
        return layer
    # The configs stay the model's own: they say which attention is called.
    configs = [module.config for module in layer.modules() if hasattr(module, "config")]
    return copy.deepcopy(layer, {id(config): config for config in configs}).float()


def _run(layer: nn.Module, call: Call, given: Tensor) -> Tensor:
    """The layer's new hidden states for these, all else as in the call."""
    args = tuple(map(as_float, call.args))
    kwargs = {name: as_float(value) for name, value in call.kwargs.items()}
    for name, value in kwargs.items():
        if hasattr(value, "get_seq_length"):  # a cache would be read and written a second time
            kwargs[name] = None
    if args:
        args = (given, *args[1:])
    else:
        kwargs["hidden_states"] = given
    out = layer(*args, **kwargs)
    out = out[0] if isinstance(out, tuple) else out
    if out.shape != given.shape or out.dtype != given.dtype:
        raise Unrunnable(f"{type(layer).__name__} returns {out.dtype} {tuple(out.shape)}")
    return out


def as_float(value: Any) -> Any:
    """Floating-point tensors in fp32, also in tuples and lists.

    A dict stays the same object: some models hand a layer's keys on to later layers in one.
    """
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    if type(value) in (tuple, list):
        return type(value)(map(as_float, value))
    return value
