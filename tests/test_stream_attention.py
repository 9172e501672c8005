"""Attention over trees equals dense attention under an explicit mask, whichever way it is made."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.memory import resident_peak
from prefkit.data.stream import Packed, Stream, Tree
from prefkit.model import stream_attention
from prefkit.model.stream_attention import attend

STREAMS = {
    "shared": Stream((Tree(0, 7, (3, 5)),)),
    "separate": Stream((Tree(0, 9), Tree(9, 4))),
    "packed": Stream((Tree(0, 7, (3, 5)), Tree(15, 4), Tree(19, 1, (0, 6)), Tree(26, 2, (4, 0)))),
    "three tails": Stream((Tree(0, 5, (2, 3, 4)),)),
    "over a block": Stream((Tree(0, 300, (40, 270)), Tree(610, 3))),
}
CPU, BLOCKWISE = stream_attention._FlashCPU, stream_attention._Blockwise


def allowed(stream: Stream) -> Tensor:
    """(N, N) bool: who sees whom, read off the trees one token at a time."""
    mask = torch.zeros(len(stream), len(stream), dtype=torch.bool)
    for tree in stream.trees:
        trunk = list(range(tree.start, tree.start + tree.trunk))
        tails = zip(tree.tail_starts(), tree.tails, strict=True)
        for sequence in [trunk, *(trunk + list(range(s, s + n)) for s, n in tails)]:
            for place, token in enumerate(sequence):
                mask[token, sequence[: place + 1]] = True
    return mask


def dense(
    q: Tensor, k: Tensor, v: Tensor, stream: Stream, scale: float, cap: float | None
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    return scores.masked_fill(~allowed(stream), -torch.inf).softmax(-1) @ v


def operands(stream: Stream, dtype: torch.dtype = torch.float64, groups: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((1, 2 * groups, len(stream), 8), *2 * ((1, 2, len(stream), 8),))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def check(got: Tensor, want: Tensor, inputs: list[Tensor], bound: float) -> None:
    assert (got - want).abs().max() < bound
    direction = torch.randn_like(want)
    mine = torch.autograd.grad(got, inputs, direction)
    theirs = torch.autograd.grad(want, inputs, direction)
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).abs().max() < 10 * bound


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("cap", [None, 2.0])
def test_blockwise_equals_the_definition(name: str, cap: float | None) -> None:
    inputs = operands(STREAMS[name])
    got = BLOCKWISE.apply(*inputs, STREAMS[name], 0.3, cap)
    check(got, dense(*inputs, STREAMS[name], 0.3, cap), inputs, 1e-13)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("groups", [1, 3])
def test_the_cpu_kernel_equals_the_definition(name: str, groups: int) -> None:
    inputs = operands(STREAMS[name], groups=groups)
    got = CPU.apply(*inputs, STREAMS[name], 0.3)
    check(got, dense(*inputs, STREAMS[name], 0.3, None), inputs, 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_stays_near_fp64(dtype: torch.dtype) -> None:
    stream = STREAMS["packed"]
    inputs = operands(stream, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    want = dense(*exact, stream, 8**-0.5, None)  # type: ignore[arg-type]
    for got in (attend(*inputs, stream), attend(*inputs, stream, softcap=1e6)):  # type: ignore[misc]
        assert got.dtype == dtype
        assert (got.double() - want).abs().max() < (2e-2 if dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize("name", STREAMS)
def test_the_variable_length_call(name: str) -> None:
    """What a GPU's kernel is handed gives the same numbers, aligned at the bottom right."""
    stream = STREAMS[name]
    inputs = operands(stream)
    got = stream_attention._varlen(_variable_length, *inputs, stream, 0.3, 2.0)  # type: ignore[misc]
    check(got, dense(*inputs, stream, 0.3, 2.0), inputs, 1e-13)  # type: ignore[misc]


def _variable_length(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float, cap: float | None
) -> Tensor:
    """The documented meaning of flash-attn's variable-length function: (N, H, d) → (N, H, d)."""
    outs = []
    assert packed.cu_queries.dtype == packed.cu_keys.dtype == torch.int32
    starts, ends = packed.cu_queries.tolist(), packed.cu_keys.tolist()
    for i in range(len(starts) - 1):
        queries = q[starts[i] : starts[i + 1]].transpose(0, 1)
        keys, values = (x[ends[i] : ends[i + 1]].transpose(0, 1) for x in (k, v))
        groups = queries.shape[0] // keys.shape[0]
        keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
        assert queries.shape[1] <= packed.max_queries
        assert keys.shape[1] <= packed.max_keys
        scores = queries @ keys.transpose(-1, -2) * scale
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        late = torch.ones(scores.shape[1:], dtype=torch.bool)
        late = late.triu(keys.shape[1] - queries.shape[1] + 1)
        outs.append(scores.masked_fill(late, -torch.inf).softmax(-1) @ values)
    return torch.cat(outs, 1).transpose(0, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, k, v: (q[:, :, :-1], k, v), "13 tokens of the stream"),
        (lambda q, k, v: (q, k, v[:, :1]), "1 value heads"),
        (lambda q, k, v: (q[:, :3], k, v), "3 query heads cannot share 2"),
        (lambda q, k, v: (q.expand(2, -1, -1, -1), k, v), r"must be \(1, heads"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attend(*change(*operands(STREAMS["separate"])), STREAMS["separate"])


def test_no_memory_of_queries_times_keys() -> None:
    """At 4096 + 2 × 2048 tokens the scores of one head alone would be 268 MB."""
    stream = Stream((Tree(0, 4096, (2048, 2048)),))
    q, k, v = (torch.randn(1, 2, 8192, 16, requires_grad=True) for _ in range(3))
    attend(q[:, :, :64], k[:, :, :64], v[:, :, :64], Stream((Tree(0, 64),))).sum().backward()
    for cap, bound in ((None, 30e6), (3.0, 268e6)):
        peak = resident_peak(lambda c=cap: attend(q, k, v, stream, softcap=c).sum().backward())
        assert peak < bound, cap
