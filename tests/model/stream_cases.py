"""Trees, attention by its definition, and a variable-length kernel in plain torch."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Node, Packed, Reach, Stream
from prefkit.model.attention.compute.flash import Flash

STREAMS = {
    "shared": Stream.of((7, 3, 5)),
    "separate": Stream.of(9, 4),
    "packed": Stream.of((7, 3, 5), 4, (1, 0, 6), (2, 4, 0)),
    "three tails": Stream.of((5, 2, 3, 4)),
    "deep": Stream.of((4, (3, (2, 5, 1), 6), (0, 2, (1, 3, 2)), 4), (0, 3), (2, (2, (2, 2, 1)))),
    "over a block": Stream.of((300, 40, 270), 3),
}
REACHES = [Reach(5), Reach(1), Reach(64), Reach(chunk=4), Reach(chunk=100), Reach(1000, 1000)]


def random_trees(seed: int) -> Stream:
    """A few trees of depths 0 to 6 in a row, some nodes empty: up to some hundred tokens."""
    draw, nodes = random.Random(seed), list[Node]()

    def grow(parent: int, depth: int) -> None:
        nodes.append(Node(draw.choice((0, 1, 2, 3, 7, 12)), parent))
        own = len(nodes) - 1
        for _ in range(draw.choice((0, 1, 2, 3)) if depth < 6 and len(nodes) < 60 else 0):
            grow(own, depth + 1)

    for _ in range(draw.randint(1, 3)):
        grow(-1, 0)
    return Stream((*nodes, Node(1)))  # a row has a token


def steps(prompt: int, count: int, length: int) -> Stream:
    """A solution of so many steps on a prompt, each with one wrong sibling."""
    tree: Any = length
    for _ in range(count - 1):
        tree = (length, tree, length)
    return Stream.of((prompt, tree, length))


def allowed(stream: Stream, reach: Reach = EVERYTHING) -> Tensor:
    """(N, N) bool: who sees whom, read off the trees one token at a time."""
    mask = torch.zeros(len(stream), len(stream), dtype=torch.bool)
    paths: list[list[int]] = []  # of each node, itself included
    place = 0
    for length, parent in stream.nodes:
        path = [*(paths[parent] if parent >= 0 else []), *range(place, place + length)]
        paths.append(path)
        place += length
        for position in range(len(path) - length, len(path)):
            first = 0 if reach.window is None else max(0, position - reach.window + 1)
            if reach.chunk is not None:
                first = max(first, position // reach.chunk * reach.chunk)
            mask[path[position], path[first : position + 1]] = True
    return mask


def dense(
    q: Tensor, k: Tensor, v: Tensor, stream: Stream, scale: float, cap: float | None,
    reach: Reach = EVERYTHING, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~allowed(stream, reach), -torch.inf)
    if sinks is None:
        return scores.softmax(-1) @ v
    total = scores.exp().sum(-1, keepdim=True) + sinks[:, None, None].exp()
    return scores.exp() / total @ v


def operands(
    stream: Stream, dtype: torch.dtype = torch.float64, groups: int = 2, values: int = 8,
    sinks: bool = False,
) -> list[Tensor]:  # fmt: skip
    torch.manual_seed(0)
    keys = (1, 2, len(stream))
    shapes: list[Any] = [(1, 2 * groups, len(stream), 8), (*keys, 8), (*keys, values)]
    shapes += [(2 * groups,)] if sinks else []
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def check(got: Tensor, want: Tensor, inputs: list[Tensor], bound: float) -> None:
    assert (got - want).abs().max() < bound
    direction = torch.randn_like(want)
    mine = torch.autograd.grad(got, inputs, direction)
    theirs = torch.autograd.grad(want, inputs, direction, retain_graph=True)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).abs().max() < 10 * bound


def pieces(packed: Packed) -> Iterator[tuple[slice, slice, Tensor]]:
    """Queries, keys and what is hidden of each attention, as flash-attn documents its call."""
    assert packed.cu_queries.dtype == packed.cu_keys.dtype == torch.int32
    starts, ends = packed.cu_queries.tolist(), packed.cu_keys.tolist()
    for i in range(len(starts) - 1):
        queries, keys = starts[i + 1] - starts[i], ends[i + 1] - ends[i]
        assert queries <= packed.max_queries
        assert keys <= packed.max_keys
        own = torch.arange(queries)[:, None] + keys - queries
        hidden = torch.arange(keys) > own
        if packed.window is not None:
            hidden |= torch.arange(keys) <= own - packed.window
        yield slice(*starts[i : i + 2]), slice(*ends[i : i + 2]), hidden


def scores_of(q: Tensor, k: Tensor, scale: float, cap: float | None) -> Tensor:
    """(n, H, d), (m, G, d) → (H, n, m)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q.transpose(0, 1) @ k.permute(1, 2, 0) * scale
    return scores if cap is None else cap * torch.tanh(scores / cap)


def variable_length(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float, cap: float | None
) -> Tensor:
    """The documented meaning of flash-attn's variable-length function: (N, H, d) → (N, H, d)."""
    outs = []
    for queries, keys, hidden in pieces(packed):
        scores = scores_of(q[queries], k[keys], scale, cap).masked_fill(hidden, -torch.inf)
        values = v[keys].repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1)
        outs.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outs)


def flash_forward(q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float) -> Any:
    sums = [
        scores_of(q[a], k[b], scale, None).masked_fill(hidden, -torch.inf).logsumexp(-1)
        for a, b, hidden in pieces(packed)
    ]
    return variable_length(q, k, v, packed, scale, None), torch.cat(sums, 1)


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, packed: Packed,
    scale: float, state: tuple[Tensor, ...],
) -> list[Tensor]:  # fmt: skip
    """FlashAttention-2's backward, which knows other keys by `out` and `lse` alone."""
    groups = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    for a, b, hidden in pieces(packed):
        shares = (scores_of(q[a], k[b], scale, None) - lse[:, a, None]).exp().masked_fill(hidden, 0)
        g, o = grad[a].transpose(0, 1), out[a].transpose(0, 1)  # (H, n, d)
        values = v[b].repeat_interleave(groups, 1).transpose(0, 1)
        ds = shares * (g @ values.transpose(1, 2) - (g * o).sum(-1, keepdim=True)) * scale
        keys = k[b].repeat_interleave(groups, 1).transpose(0, 1)
        dq[a] += (ds @ keys).transpose(0, 1)
        for total, part in (
            (dk, ds.transpose(1, 2) @ q[a].transpose(0, 1)),
            (dv, shares.transpose(1, 2) @ g),
        ):
            total[b] += part.unflatten(0, (-1, groups)).sum(1).transpose(0, 1)
    return [dq, dk, dv]


FLASH = Flash(flash_forward, flash_backward)
