"""Modules that mix tokens in their own way, given each sequence of a row by itself.

Recurrent layers, short convolutions, sparse indexers, attention of older code: what such a module
makes of a token depends on those before it *in the row*. `unpack` gives the module a forward that,
for a stream, hands it the row's sequences as padded batches, masks and positions included, and puts
what it returns back in the row. Everything around it (attention of other layers, feed-forwards,
experts, the head) still reads each token once.

The result is exactly that of padded rows, gradients too. A trunk with two tails is read by the
module twice; its tokens' gradients add up. Processes that share a row share out its sequences.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.data.batch.sequences import SequenceBatch, batches_of
from prefkit.model.attention.current_row import (
    PREFIX,
    Row,
    cover_forward,
    covered_forward,
    current_row,
    in_row,
    note_read,
    trees_and_group,
    uncover_forward,
)
from prefkit.model.attention.row_exchange import all_of_row, share_of_row
from prefkit.model.attention.row_mask import RowMask


@dataclass(frozen=True)
class Unpacking:
    """How a class of modules is given one sequence at a time.

    Attributes:
        kind: name of the class.
        token_dims: for each tensor of tokens among its arguments, by its path, which dimension
            counts them. Other tensors are handed on as they are.
        needs_mask: masks are made even where the attention can do without.
        one_batch: all sequences are padded to one length, as they are where a layer hands places
            among its keys to the next.
    """

    kind: str
    token_dims: Mapping[str, int] = field(hash=False)
    needs_mask: bool = False
    one_batch: bool = False


def unpack(module: nn.Module, how: Unpacking) -> None:
    """Lets a module read streams sequence by sequence; called again it changes only how."""
    cover_forward(module, _by_sequence)
    module._prefkit_unpacking = how  # type: ignore[assignment]


def pack_mixers(model: nn.Module) -> None:
    """Takes all unpacking in a model back."""
    for module in model.modules():
        uncover_forward(module)
        module.__dict__.pop("_prefkit_unpacking", None)


def unpacking_of(module: nn.Module) -> Unpacking | None:
    """What `unpack` was called with, if it was."""
    return module.__dict__.get("_prefkit_unpacking")


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in tuples, lists and dicts, by its path: "kwargs.position_embeddings.1"."""
    if type(value) in (tuple, list, dict):
        for name, x in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk(x, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def mapped(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """The same containers with each thing changed that `walk` finds in them."""
    if type(value) not in (tuple, list, dict):
        return change(path, value)
    named = value.items() if isinstance(value, dict) else enumerate(value)
    made = {k: mapped(x, change, f"{path}.{k}" if path else str(k)) for k, x in named}
    return made if isinstance(value, dict) else type(value)(made.values())


def _by_sequence(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    row: Row | None = kwargs.pop("prefkit_stream", None) or current_row.get()
    inner = covered_forward(self)
    with in_row(None), own_names(self):
        if row is None:
            return inner(*args, **kwargs)
        note_read()
        return _over_sequences(self, inner, row, args, kwargs)


def _over_sequences(
    self: Any, inner: Callable[..., Any], row: Row, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    how: Unpacking = self._prefkit_unpacking
    stream, group = trees_and_group(row)
    found = dict(walk({"args": args, "kwargs": kwargs}))
    whole = {p: x for p, x in found.items() if p in how.token_dims and isinstance(x, Tensor)}
    device = next(iter(whole.values())).device
    share = (0, 1) if group is None else (group.rank(), group.size())
    batches = batches_of(stream, device, *share, together=how.one_batch)
    idle = not batches  # its part in what all processes do together is done all the same
    if idle:
        batches = batches_of(stream, device, together=how.one_batch)[-1:]
    if group is not None:
        whole = {p: all_of_row(x, how.token_dims[p], group) for p, x in whole.items()}
    outs = []
    for batch in batches:

        def given(path: str, value: Any, batch: SequenceBatch = batch) -> Any:
            if path in whole:
                return _taken(whole[path], how.token_dims[path], batch)
            if isinstance(value, RowMask):
                name = type(self).__name__
                rows, length = batch.places.shape
                return value.tensor(rows, length, name, how.needs_mask)
            return value

        changed = mapped({"args": args, "kwargs": kwargs}, given)
        outs.append(inner(*changed["args"], **changed["kwargs"]))
    return _joined(outs, batches, stream, group, idle)


def _taken(x: Tensor, dim: int, batch: SequenceBatch) -> Tensor:
    """Tokens along `dim`, of a row, → (…S…, …L…): batch before tokens, where the row had them."""
    if dim == 0:  # counts of tokens: the same in each sequence
        return x[: batch.places.shape[1]]
    rows = 0 if x.shape[0] == 1 else dim - 1  # positions of several axes: (3, 1, N)
    tokens = x.movedim(dim, 0).squeeze(rows + 1)
    return _Take.apply(tokens, batch).movedim((0, 1), (rows, dim))


class _Take(torch.autograd.Function):
    """(N, …) → (S, L, …); tail after tail adds to a trunk's gradient: the same bits each time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, batch: SequenceBatch) -> Tensor:
        ctx.batch, ctx.tokens = batch, len(x)
        return x[batch.places]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rounds = ctx.batch.rounds
        kind = grad.dtype
        if len(rounds) > 2:  # a sum of two is rounded once in any case
            kind = torch.promote_types(kind, torch.float32)
        total = grad.new_zeros((ctx.tokens, *grad.shape[2:]), dtype=kind)
        for tokens, places in rounds:  # no token twice in a round: no two threads meet
            total.index_add_(0, tokens, grad.flatten(0, 1).index_select(0, places).to(kind))
        return total.to(grad.dtype), None


def _joined(
    outs: list[Any], batches: list[SequenceBatch], stream: Any, group: Any, idle: bool
) -> Any:
    """What the batches returned, as the module would have returned it for the row."""
    first = outs[0]
    if isinstance(first, tuple):
        parts = [[out[i] for out in outs] for i in range(len(first))]
        return tuple(_joined(part, batches, stream, group, idle) for part in parts)
    if not isinstance(first, Tensor) or first.dim() < 2:
        return first  # a bias that is added later, say
    if first.shape[:2] != batches[0].places.shape:
        return None  # weights of attention, states: none is asked for in training
    kept = [
        out.flatten(0, 1).index_select(0, batch.kept[: 0 if idle else None])
        for out, batch in zip(outs, batches, strict=True)
    ]
    row = first.new_zeros((len(stream), *first.shape[2:]))
    into = torch.cat([batch.into[: 0 if idle else None] for batch in batches])
    row = row.index_copy(0, into, torch.cat(kept))
    if group is None:
        return row[None]
    if idle and first.is_floating_point():
        row = row + 0 * first.sum()
    return share_of_row(row, group)[None]


@contextlib.contextmanager
def own_names(module: nn.Module) -> Iterator[None]:
    """The attention implementations that a module's configs had before ours; some look at names."""
    configs: dict[int, Any] = {
        id(m.config): m.config for m in module.modules() if hasattr(m, "config")
    }
    names = {key: getattr(c, "_attn_implementation", None) for key, c in configs.items()}
    ours = {k: name for k, name in names.items() if name and name.startswith(PREFIX)}
    for key, name in ours.items():
        configs[key]._attn_implementation = name.removeprefix(PREFIX)
    try:
        yield
    finally:
        for key, name in ours.items():
            configs[key]._attn_implementation = name
