"""Attention over trees equals dense attention under an explicit mask, whichever way it is made."""

import re
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.memory import resident_peak
from prefkit.data.batch.stream import Packed, Reach, Stream
from prefkit.model.attention.compute import blockwise as blockwise_attention
from prefkit.model.attention.compute import varlen as varlen_attention
from prefkit.model.attention.compute.attend import attend
from prefkit.model.attention.compute.flash import TORCH, Flash
from prefkit.model.attention.compute.flash_cpu import FlashCPU
from prefkit.model.attention.compute.groups import groups_of
from prefkit.model.attention.compute.trial import Call
from prefkit.model.attention.compute.varlen import agrees
from tests.model.stream_cases import (
    FLASH,
    REACHES,
    STREAMS,
    check,
    dense,
    flash_backward,
    flash_forward,
    operands,
    variable_length,
)

CPU, BLOCKWISE = FlashCPU, blockwise_attention.Blockwise


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


LARGE = "over a block"  # with one reach only: each costs seconds


@pytest.mark.parametrize(
    ("name", "reach"),
    [
        *((name, reach) for name in STREAMS if name != LARGE for reach in REACHES),
        (LARGE, Reach(64)),
    ],
)
@pytest.mark.parametrize("sinks", [False, True])
def test_windows_chunks_and_sinks(name: str, reach: Reach, sinks: bool) -> None:
    """Whatever computes them: plain torch, the CPU's kernel where it can, a GPU's call."""
    stream = STREAMS[name]
    for values in (8, 6):
        inputs = operands(stream, values=values, sinks=sinks)
        sink = inputs[3] if sinks else None
        want = dense(*inputs[:3], stream, 0.3, None, reach, sink)  # type: ignore[misc]
        check(attend(*inputs[:3], stream, 0.3, None, reach, sink), want, inputs, 1e-13)  # type: ignore[misc]
        cut, kernel = reach.within(stream.longest), FLASH if sinks else variable_length
        if values == 8 and cut.window != 1:
            check(CPU.apply(*inputs[:3], stream, 0.3, cut, sink), want, inputs, 1e-13)
        for run in (BLOCKWISE.apply, partial(varlen_attention.varlen, kernel)):
            check(run(*inputs[:3], stream, 0.3, None, cut, sink), want, inputs, 1e-13)


@pytest.mark.parametrize("name", STREAMS)
def test_a_cap_with_a_window_and_sinks(name: str) -> None:
    stream, reach = STREAMS[name], Reach(6)
    inputs = operands(stream, sinks=True)
    want = dense(*inputs[:3], stream, 0.3, 2.0, reach, inputs[3])  # type: ignore[misc]
    check(attend(*inputs[:3], stream, 0.3, 2.0, reach, inputs[3]), want, inputs, 1e-13)  # type: ignore[misc]


def test_a_window_hides_the_rest_of_a_trunk() -> None:
    """No key that none of its queries sees is gathered, and every chunk begins at its multiple."""
    stream = Stream.of((100, 7, 30, 5))
    assert [a.context for a in stream.attends(Reach(10))] == [(), ((91, 100),), ((91, 100),)]
    chunks = [(tuple(a.queries), a.context) for a in stream.attends(Reach(chunk=40))]
    assert chunks[:3] == [((0, 40), ()), ((40, 80), ()), ((80, 107), ())]
    assert chunks[3:] == [((107, 127), ((80, 100),)), ((127, 137), ()), ((137, 142), ((80, 100),))]
    (group,) = groups_of(stream, torch.device("cpu"), Reach(10))
    assert len(group.packed.keys) == len(stream) + 2 * 9


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
    got = varlen_attention.varlen(variable_length, *inputs, stream, 0.3, 2.0)  # type: ignore[misc]
    check(got, dense(*inputs, stream, 0.3, 2.0), inputs, 1e-13)  # type: ignore[misc]


def test_a_kernel_for_sinks_is_tried_too() -> None:
    """A backward that is not told of the sink's share gives another gradient."""
    cpu, call = torch.device("cpu"), Call(4, 2, 8, 8, windowed=True, sinks=True)
    assert agrees(FLASH, cpu, torch.float32, call)
    assert agrees(variable_length, cpu, torch.float32, Call(4, 2, 8, 6, windowed=True))

    def deaf(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, p: Packed,
             scale: float, state: Any) -> Any:  # fmt: skip
        return flash_backward(grad, q, k, v, *flash_forward(q, k, v, p, scale), p, scale, state)

    assert not agrees(Flash(flash_forward, deaf), cpu, torch.float32, call)

    def unwindowed(q: Tensor, k: Tensor, v: Tensor, p: Packed, *more: Any) -> Tensor:
        return variable_length(q, k, v, replace(p, window=None), *more)

    assert not agrees(unwindowed, cpu, torch.float32, Call(4, 2, 8, 8, windowed=True))


def test_a_kernel_is_tried_before_it_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong alignment, a wrong scale or a kernel that fails: left aside, with the reason."""

    def top_left(q: Tensor, k: Tensor, v: Tensor, p: Packed, *more: Any) -> Tensor:
        # Aligned at the other end, a tail of 40 sees 40 of its 57 keys.
        counts = torch.minimum(p.cu_keys.diff(), p.cu_queries.diff())
        starts = p.cu_keys[:-1].tolist()
        pairs = zip(starts, counts.tolist(), strict=True)
        kept = torch.cat([torch.arange(a, a + n) for a, n in pairs])
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
        packed = Packed(kept, p.cu_queries, ends, p.max_queries, int(counts.max()))
        return variable_length(q, k[kept], v[kept], packed, *more)

    def failing(*operands: Any) -> Tensor:
        raise RuntimeError("no such kernel\non this GPU")

    cpu = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        assert agrees(variable_length, cpu, dtype, Call(4, 2, 8, 8, None))
        assert agrees(variable_length, cpu, dtype, Call(4, 4, 16, 16, 3.0))
        assert not agrees(top_left, cpu, dtype, Call(4, 2, 8, 8, None))
    with caplog.at_level("WARNING"):
        assert not agrees(failing, cpu, torch.float32, Call(4, 2, 8, 8, None))
    assert "is left aside (no such kernel)" in caplog.text


def test_a_kernel_with_a_wrong_gradient_is_left_aside(caplog: pytest.LogCaptureFixture) -> None:
    """The reason names the gradient, how far it is off and how far it might be."""

    def without_last_key(q: Tensor, k: Tensor, v: Tensor, *more: Any) -> Tensor:
        last = torch.arange(len(v)) == len(v) - 1
        return variable_length(q, k, torch.where(last[:, None, None], v.detach(), v), *more)

    for dtype in (torch.float32, torch.bfloat16):
        with caplog.at_level("WARNING"):
            assert not agrees(without_last_key, torch.device("cpu"), dtype, Call(4, 2, 8, 8, None))
        assert re.search(r"gradient of v off by \S+ of its largest value, limit \S+\)", caplog.text)


def test_trying_a_kernel_leaves_no_trace_in_the_forward_around_it() -> None:
    """Not in a checkpoint that counts tensors, nor where no gradients are recorded."""
    saved = []

    def fresh() -> Any:
        return lambda *operands: variable_length(*operands)

    cpu = torch.device("cpu")
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        assert agrees(fresh(), cpu, torch.float32, Call(4, 2, 8, 8, None))
    assert not saved
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert agrees(fresh(), cpu, torch.float32, Call(4, 2, 8, 8, None))


@pytest.mark.parametrize("takes", [True, False])
def test_grouped_heads_are_first_tried_as_they_are(
    takes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A version without a word for grouped heads, whose kernel takes them or does not."""
    from torch.nn.attention import varlen

    seen = []

    def old(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int,
            is_causal: bool = False) -> Tensor:  # fmt: skip
        seen.append(k.shape[1])
        if k.shape[1] != q.shape[1] and not takes:
            raise RuntimeError("Number of heads must be the same")
        packed = Packed(cu_q, cu_q, cu_k, max_q, max_k)
        return variable_length(q, k, v, packed, q.shape[-1] ** -0.5, None)

    monkeypatch.setattr(varlen, "varlen_attn", old)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    for cached in (varlen_attention.varlen_kernels, varlen_attention.believed):
        cached.cache_clear()
    with caplog.at_level("WARNING"):
        kernel = varlen_attention.believed(
            torch.device("cpu"), torch.float32, Call(4, 2, 8, 8, None)
        )
    assert kernel is not None
    assert seen == ([2] if takes else [2, 4])
    assert ("the next way to call it is tried" in caplog.text) != takes
    assert ("Number of heads must be the same" in caplog.text) != takes
    for cached in (varlen_attention.varlen_kernels, varlen_attention.believed):
        cached.cache_clear()


@pytest.mark.parametrize("reach", [Reach(), Reach(64)])
@pytest.mark.parametrize("which", range(3))
def test_numbers_of_a_head_need_not_follow_each_other(reach: Reach, which: int) -> None:
    stream = STREAMS["over a block"]
    inputs = operands(stream, values=8)
    strided = [x.transpose(2, 3).contiguous().transpose(2, 3) if i == which else x
               for i, x in enumerate(inputs)]  # fmt: skip
    check(
        attend(*strided, stream, 0.3, None, reach),
        attend(*inputs, stream, 0.3, None, reach),
        inputs,
        1e-13,
    )


@pytest.mark.parametrize("window", [None, 16])
def test_torchs_own_operators_take_what_sinks_hand_them(window: int | None) -> None:
    """By their schemas and on tensors without data: a GPU is where they compute."""
    stream, reach = STREAMS["packed"], Reach(window)
    shapes = ((1, 4, len(stream), 64), *2 * ((1, 2, len(stream), 64),), (4,))
    inputs = [torch.empty(s, device="meta", dtype=torch.bfloat16) for s in shapes]
    inputs = [x.requires_grad_() for x in inputs]
    out = varlen_attention.varlen(TORCH, *inputs[:3], stream, 0.1, None, reach, inputs[3])
    assert out.shape == shapes[0]
    grads = torch.autograd.grad(out, inputs, torch.empty_like(out))
    assert [grad.shape for grad in grads] == [torch.Size(s) for s in shapes]


def test_memory_that_ran_out_is_no_word_on_a_kernel() -> None:
    """The next forward tries again."""

    def full(*operands: Any) -> Tensor:
        raise torch.OutOfMemoryError("next to a whole forward")

    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            agrees(full, torch.device("cpu"), torch.float32, Call(4, 2, 8, 8, None))


def test_blocks_are_larger_on_a_gpu() -> None:
    """By bytes there; in both cases the scores of a block stay within what is set."""
    size = blockwise_attention.block_size
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert size(8, 4096, gpu) == 512
    assert size(8, 4096, cpu) == 64
    assert size(32, 8192, gpu) * 32 * 8192 * 4 == blockwise_attention.GPU_SCORE_BYTES
    assert size(1, 10, gpu) == 1024
    assert size(64, 1 << 20, gpu) == 16


@pytest.mark.parametrize("known", ["new", "old"])
def test_torch_varlen_is_called_by_the_names_it_knows(
    known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Causal from the bottom right, our scale, grouped heads: whatever the version calls them."""
    from torch.nn.attention import varlen

    def new(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, *,
            scale: float, window_size: tuple[int, int], enable_gqa: bool) -> Tensor:  # fmt: skip
        assert window_size == (-1, 0)
        assert enable_gqa == (q.shape[1] != k.shape[1])
        return variable_length(q, k, v, Packed(cu_q, cu_q, cu_k, max_q, max_k), scale, None)

    def old(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int,
            is_causal: bool = False) -> Tensor:  # fmt: skip
        assert is_causal
        assert q.shape[1] == k.shape[1]
        packed = Packed(cu_q, cu_q, cu_k, max_q, max_k)
        return variable_length(q, k, v, packed, q.shape[-1] ** -0.5, None)

    monkeypatch.setattr(varlen, "varlen_attn", {"new": new, "old": old}[known])
    kernel = varlen_attention._torch_varlen()
    assert kernel is not None
    stream = STREAMS["packed"]
    inputs = operands(stream)
    got = varlen_attention.varlen(kernel, *inputs, stream, 0.3, None)  # type: ignore[misc]
    check(got, dense(*inputs, stream, 0.3, None), inputs, 1e-13)  # type: ignore[misc]


def test_blockwise_keeps_fp32_under_autocast_and_in_its_sums() -> None:
    stream = STREAMS["over a block"]
    inputs = operands(stream, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        got = BLOCKWISE.apply(*inputs, stream, 0.3, 2.0)
    assert (got.double() - dense(*exact, stream, 0.3, 2.0)).abs().max() < 1e-5  # type: ignore[misc]


def test_a_backward_under_autocast_keeps_fp32() -> None:
    stream = STREAMS["over a block"]
    grads = []
    for enabled in (False, True):
        inputs = operands(stream, torch.float32)
        out = BLOCKWISE.apply(*inputs, stream, 0.3, 2.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            grads.append(torch.autograd.grad(out, inputs, torch.ones_like(out)))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_many_blocks_add_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 operands: the gradient of a key is as good with 60 blocks as with one."""
    stream = Stream.of(960)
    errors = {}
    for scores in (1 << 30, 1):  # one block of 256, or blocks of 16
        monkeypatch.setattr(blockwise_attention, "SCORES", scores)
        inputs = operands(stream, torch.bfloat16)
        exact = [x.detach().float().requires_grad_() for x in inputs]
        direction = torch.ones(1, 4, 960, 8)
        got = BLOCKWISE.apply(*inputs, stream, 0.3, 2.0)
        mine = torch.autograd.grad(got, inputs, direction.bfloat16())[1].float()
        want = torch.autograd.grad(BLOCKWISE.apply(*exact, stream, 0.3, 2.0), exact, direction)[1]
        errors[scores] = float((mine - want).norm() / want.norm())
    assert errors[1] < 1.2 * errors[1 << 30]


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
    stream = Stream.of((4096, 2048, 2048))
    q, k, v = (torch.randn(1, 2, 8192, 16, requires_grad=True) for _ in range(3))
    attend(q[:, :, :64], k[:, :, :64], v[:, :, :64], Stream.of(64)).sum().backward()
    for cap, bound in ((None, 30e6), (3.0, 268e6)):
        peak = resident_peak(lambda c=cap: attend(q, k, v, stream, softcap=c).sum().backward())
        assert peak < bound, cap
