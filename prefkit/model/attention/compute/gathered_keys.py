"""The keys of a stream once for each attention that reads them, with a gradient of the same bits.

The gradient of `index_select` adds the parts of a key that is read three times or more in whatever
order a GPU's threads come. Here the order is that of the row: a token's own position, then branch
after branch of its tree.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Reach, Stream


@dataclass(frozen=True)
class _Uses:
    """Where each token lies among the gathered keys.

    Attributes:
        own: (N,) int64, where it lies as a token of its own attention; every token has one.
        rounds: what the first further branch reads of each token's, what the second reads and so
            on: tokens (n,), each at most once, and where they lie (n,), both int64.
    """

    own: Tensor
    rounds: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, stream: Stream, device: torch.device, reach: Reach) -> "_Uses":
        own: list[Tensor] = []
        found: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, their places, and their rounds
        place, uses = 0, torch.zeros(len(stream), dtype=torch.int64)  # of each token so far
        for one in stream.attends(reach):
            for span in one.context:
                tokens = torch.arange(span.start, span.stop)
                found.append((tokens, place + torch.arange(len(span)), uses[tokens].clone()))
                uses[tokens] += 1
                place += len(span)
            own.append(torch.arange(place, place + len(one.queries)))
            place += len(one.queries)
        if not found:
            return cls(torch.cat(own).to(device), ())
        tokens, places, rounds = (torch.cat(part) for part in zip(*found, strict=True))
        order, sizes = rounds.argsort(stable=True), torch.bincount(rounds).tolist()
        parts = (x[order].to(device).split(sizes) for x in (tokens, places))
        return cls(torch.cat(own).to(device), tuple(zip(*parts, strict=True)))


_uses: WeakKeyDictionary[Stream, dict[tuple[torch.device, Reach], _Uses]] = WeakKeyDictionary()


def gathered(x: Tensor, stream: Stream, reach: Reach = EVERYTHING) -> Tensor:
    """(N, heads, d) of a row's tokens → (K, heads, d) in the order of `Packed.keys`.

    Args:
        x: keys or values, any dtype.
        stream: of the N tokens.
        reach: how far back its tokens see.
    """
    return _Gather.apply(x, stream, reach)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stream: Stream, reach: Reach) -> Tensor:
        ctx.stream, ctx.reach = stream, reach
        return x.index_select(0, stream.packed(x.device, reach).keys)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        made, key = _uses.setdefault(ctx.stream, {}), (grad.device, ctx.reach)
        if key not in made:
            made[key] = _Uses.of(ctx.stream, *key)
        uses = made[key]
        total = grad.index_select(0, uses.own)
        if len(uses.rounds) > 1:  # a sum of two is rounded once in any case
            total = total.to(torch.promote_types(grad.dtype, torch.float32))
        for tokens, places in uses.rounds:  # no token twice in a round: no two threads meet
            total.index_add_(0, tokens, grad.index_select(0, places).to(total.dtype))
        return total.to(grad.dtype), None, None
