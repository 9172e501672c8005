"""Trees whose branches read more keys than one call may gather: several calls, the same numbers."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit.data.batch.stream import Packed, Reach, Stream
from prefkit.model.attention.compute import attend as attending
from prefkit.model.attention.compute import flex, varlen
from prefkit.model.attention.compute.blockwise import Blockwise
from prefkit.model.attention.compute.flash import TORCH, Flash
from prefkit.model.attention.compute.groups import KEYS, gathered, groups_of
from prefkit.model.attention.compute.trial import Call
from tests.model.stream_cases import (
    FLASH,
    STREAMS,
    check,
    dense,
    operands,
    random_trees,
    steps,
    variable_length,
)

CPU = torch.device("cpu")


def keys_of(stream: Stream) -> int:
    return sum(one.key_count for one in stream.attends())


@pytest.mark.parametrize("seed", range(12))
def test_any_tree_equals_the_definition_in_any_groups(seed: int) -> None:
    """By a kernel with its own backward and by one that is computed again."""
    stream = random_trees(seed)
    reach = (Reach(), Reach(5), Reach(chunk=6))[seed % 3].within(stream.longest)
    sinks, cap = seed % 2 == 0, (None, 2.0)[seed % 4 // 2]
    inputs = operands(stream, values=(8, 6)[seed % 5 % 2], sinks=sinks)
    for most in (None, 1, len(stream)):  # 1: a branch at a time
        sink = inputs[3] if sinks else None
        got = varlen.varlen(FLASH, *inputs[:3], stream, 0.3, None, reach, sink, most)  # type: ignore[misc]
        check(got, dense(*inputs[:3], stream, 0.3, None, reach, sink), inputs, 1e-13)  # type: ignore[misc]
        got = varlen.varlen(variable_length, *inputs[:3], stream, 0.3, cap, reach, None, most)  # type: ignore[misc]
        check(got, dense(*inputs[:3], stream, 0.3, cap, reach), inputs[:3], 1e-13)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["shared", "separate", "packed"])
def test_rows_of_pairs_are_one_call(name: str) -> None:
    assert len(groups_of(STREAMS[name], CPU)) == 1


def test_the_longest_prefixes_of_pairs_are_one_call() -> None:
    assert len(groups_of(Stream.of((500, 1, 1), (300, 2, 7)), CPU)) == 1


@pytest.mark.parametrize("stream", [steps(20, 24, 4), Stream.of((60, *[5] * 40))])
def test_no_call_gathers_more_keys_than_the_bound(stream: Stream) -> None:
    """Forward and backward; and what is kept for the backward are the row's own tokens."""
    assert keys_of(stream) > 3 * KEYS * len(stream)
    seen: list[int] = []

    def counted(run: Any, place: int) -> Any:
        def counting(*given: Any) -> Any:
            seen.append(len(given[place]))
            return run(*given)

        return counting

    flash = Flash(counted(FLASH.forward, 1), counted(FLASH.backward, 2))
    kept: list[Tensor] = []
    inputs = operands(stream)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        out = varlen.varlen(flash, *inputs, stream, 0.3, None)  # type: ignore[misc]
    torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert max(seen) <= KEYS * len(stream)
    assert sum(seen) == 2 * keys_of(stream)
    assert len(seen) == 2 * len(groups_of(stream, CPU))
    assert len(seen) <= 2 * (1 + keys_of(stream) * 2 // (KEYS * len(stream)))
    assert len(kept) == 5
    assert all(len(stream) in x.shape[:2] for x in kept)


@pytest.mark.parametrize("most", [None, 1, 50])
@pytest.mark.parametrize("name", STREAMS)
def test_gradients_of_keys_are_exact_sums(name: str, most: int | None) -> None:
    """Small integers add up to the same number in any order: none is lost, none counted twice."""
    stream = STREAMS[name]
    groups = groups_of(stream, CPU, most=most)
    total, want = (torch.zeros(len(stream), 2, 4) for _ in range(2))
    draw = torch.Generator().manual_seed(0)
    for group in groups:
        x = torch.randn(len(stream), 2, 4, generator=draw)
        assert torch.equal(group.gathered(x), x[group.packed.keys])
        grad = torch.randint(-9, 9, (len(group.packed.keys), 2, 4), generator=draw).float()
        want.index_add_(0, group.packed.keys, grad)
        group.add(total, grad)
    assert torch.equal(total, want)


@pytest.mark.parametrize("name", STREAMS)
def test_one_call_alone_gives_its_gradient_at_once(name: str) -> None:
    stream = STREAMS[name]
    (group,) = groups_of(stream, CPU, most=10**6)
    x = torch.randn(len(stream), 2, 4, dtype=torch.float64, requires_grad=True)
    out = gathered(x, group)
    grad = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, x, grad)
    (want,) = torch.autograd.grad(x[group.packed.keys], x, grad)
    assert (got - want).abs().max() < 1e-14


@pytest.mark.parametrize("most", [1, 10**6])
def test_many_parts_add_up_in_fp32(most: int) -> None:
    """256 + 1 is 256 in bf16: of 200 branches' parts of 1 all would be lost, one by one."""
    stream = Stream.of((3, *[1] * 200))
    groups = groups_of(stream, CPU, most=most)
    grads = [torch.ones(len(group.packed.keys), 1, 1).bfloat16() for group in groups]
    grads[0][:3] = 256  # of the first attention, which is the root's own
    total = torch.zeros(len(stream), 1, 1)
    for group, grad in zip(groups, grads, strict=True):
        group.add(total, grad)
    assert total[:3].flatten().tolist() == [256 + 199] * 3
    if most > 1:
        (group,) = groups
        assert torch.equal(group.back(grads[0]), total.bfloat16())


def test_several_calls_are_tried_as_several() -> None:
    """With the kernel whose backward is called by hand first, where it knows what is asked."""
    calls: list[Packed] = []

    def forward(q: Tensor, k: Tensor, v: Tensor, p: Packed, scale: float) -> Any:
        calls.append(p)
        return FLASH.forward(q, k, v, p, scale)

    divided = Call(4, 2, 8, 8, divided=True)
    assert varlen.agrees(Flash(forward, FLASH.backward), CPU, torch.float32, divided)
    assert len(calls) > 1
    assert varlen.varlen_kernels(divided)[0] is TORCH
    assert len(varlen.varlen_kernels(divided)) > 1
    assert TORCH not in varlen.varlen_kernels(divided._replace(softcap=3.0))
    assert TORCH not in varlen.varlen_kernels(divided._replace(divided=False))


@pytest.mark.parametrize("sinks", [False, True])
def test_torchs_own_operators_take_what_groups_hand_them(sinks: bool) -> None:
    """By their schemas and on tensors without data: a GPU is where they compute."""
    stream = steps(20, 24, 4)
    shapes = [(1, 4, len(stream), 64), *2 * [(1, 2, len(stream), 64)], *[(4,)] * sinks]
    inputs = [torch.empty(s, device="meta", dtype=torch.bfloat16) for s in shapes]
    inputs = [x.requires_grad_() for x in inputs]
    out = varlen.varlen(TORCH, *inputs[:3], stream, 0.1, None, Reach(), *inputs[3:])  # type: ignore[misc]
    grads = torch.autograd.grad(out, inputs, torch.empty_like(out))
    assert [grad.shape for grad in (out, *grads)] == [torch.Size(s) for s in (shapes[0], *shapes)]


# ------------------------------------------------------------------------------------------ choice


@pytest.mark.parametrize(
    ("kernel", "flexible", "want"),
    [(FLASH, True, "varlen"), (None, True, "flex"), (None, False, "plain")],
)
def test_a_gpu_takes_the_first_way_that_agrees(
    kernel: Any, flexible: bool, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def believed(answer: Any) -> Any:
        return lambda device, dtype, call: asked.append(call) or answer

    monkeypatch.setattr(varlen, "believed", believed(kernel))
    monkeypatch.setattr(flex, "believed", believed(flexible))
    stream = steps(20, 24, 4)
    shapes = ((1, heads, len(stream), 16) for heads in (4, 2, 2))
    given = [
        SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device=CPU, shape=s) for s in shapes
    ]
    way = attending._chosen(*given, stream, 30.0, Reach(7), None)  # type: ignore[arg-type]
    if want == "varlen":
        assert isinstance(way, partial)
        assert way.args == (kernel,)
    else:
        assert way == {"flex": flex.flex, "plain": Blockwise.apply}[want]
    assert asked[0] == Call(4, 2, 16, 16, 30.0, windowed=True, divided=False)  # 7 keys a branch
    attending._chosen(*given, stream, None, Reach(), None)  # type: ignore[arg-type]
    assert Call(4, 2, 16, 16, divided=True) in asked


def test_a_way_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = STREAMS["deep"]
    inputs = operands(stream)
    want = dense(*inputs, stream, 0.3, None)  # type: ignore[arg-type]
    names = {}
    monkeypatch.setattr(varlen, "believed", lambda *asked: FLASH)
    for way in ("varlen", "flex", "plain"):
        with attending.forced(way):
            got = attending.attend(*inputs, stream, 0.3)  # type: ignore[misc]
        check(got, want, inputs, 1e-13)
        names[way] = type(got.grad_fn).__name__
    assert names["plain"] == "BlockwiseBackward"
    names[""] = type(attending.attend(*inputs, stream, 0.3).grad_fn).__name__  # type: ignore[misc]
    assert len(set(names.values())) == 4, names
    with pytest.raises(ValueError, match="no way 'fast' to attend: take"), attending.forced("fast"):
        pass
    monkeypatch.setattr(varlen, "believed", lambda *asked: None)
    with pytest.raises(RuntimeError, match="no variable-length kernel"), attending.forced("varlen"):
        attending.attend(*inputs, stream, 0.3)  # type: ignore[misc]
    with attending.forced("plain"):  # the one before is there again
        with pytest.raises(ZeroDivisionError), attending.forced("flex"):
            raise ZeroDivisionError
        out = attending.attend(*inputs, stream, 0.3)  # type: ignore[misc]
    assert type(out.grad_fn).__name__ == "BlockwiseBackward"
