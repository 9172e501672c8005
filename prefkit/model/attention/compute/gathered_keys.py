"""The keys of a stream once for each attention that reads them, with a gradient of the same bits.

The gradient of `index_select` adds the parts of a key that is read three times or more in whatever
order a GPU's threads come. Here the order is that of the row: a token's own position, then tail
after tail of its tree.
"""

from collections import Counter
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
        rounds: what the second tail of each tree reads, what the third reads and so on: tokens
            (n,), each at most once, and where they lie (n,), both int64.
    """

    own: Tensor
    rounds: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, stream: Stream, device: torch.device, reach: Reach) -> "_Uses":
        own: list[Tensor] = []
        rounds: list[list[tuple[Tensor, Tensor]]] = []
        place, uses = 0, Counter[int]()  # how often a trunk, known by its end, was read so far
        for one in stream.attends(reach):
            if one.context is not None:
                nth = uses[one.context.stop]
                uses[one.context.stop] += 1
                if nth == len(rounds):
                    rounds.append([])
                size = len(one.context)
                tokens = torch.arange(one.context.start, one.context.stop)
                rounds[nth].append((tokens, torch.arange(place, place + size)))
                place += size
            own.append(torch.arange(place, place + len(one.queries)))
            place += len(one.queries)
        joined = [
            tuple(torch.cat(part).to(device) for part in zip(*r, strict=True)) for r in rounds
        ]
        return cls(torch.cat(own).to(device), tuple(joined))  # type: ignore[arg-type]


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
