"""What the head holds and multiplies at sizes that fit no CPU: run on tensors without data."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import head_bytes
from benchmarks.head_bytes import Shape, peak

GB = 1e9
DW_FP32 = 128_256 * 8192 * 4
LOSSES = ("dpo", "tdpo2")


@pytest.mark.parametrize("loss", LOSSES)
def test_few_tokens_hold_no_accumulator_of_the_heads_size(loss: str) -> None:
    few = Shape(loss=loss, tokens=64)
    assert peak(few, "one_pass") > DW_FP32
    assert peak(few, "keep_dz") < DW_FP32 / 100


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("pairs", [1, 8])
def test_the_peak_at_the_70b_head_is_below_5_gb_whatever_the_passes(pairs: int, loss: str) -> None:
    shape = Shape(loss=loss, tokens=16_384, pairs=pairs)
    possible = ("keep_dz", "two_pass") + (("one_pass",) if pairs == 1 else ())
    for passes in possible:
        assert peak(shape, passes) < 5 * GB, passes
    frozen = Shape(loss=loss, tokens=16_384, pairs=pairs, frozen=True)
    assert peak(frozen, "one_pass") < 1.6 * GB  # of it 1 GiB of logits


def test_chunks_of_a_head_that_trains_have_2_gib_and_of_others_1() -> None:
    """What is added to dW wants many rows: docs/kernels.md, "Held"."""
    # So many tokens that chunks of whole tiles fill nine tenths of either budget.
    trained, frozen = (Shape(loss="dpo", tokens=5120, frozen=f) for f in (False, True))
    states = 5120 * 8192 * 4  # d hidden in fp32
    # The bf16 gradient of the head is not counted; here its place is taken by fp32 dW.
    buffers = peak(trained, "one_pass") + DW_FP32 / 2 - DW_FP32 - states
    assert 0.9 * 2**31 < buffers < 2**31
    assert 0.9 * 2**30 < peak(frozen, "one_pass") - states < 2**30


def test_what_is_counted_is_what_is_there() -> None:
    """The counter against sizes known beforehand: alive together, and one after another."""
    outside = torch.empty(1000, device="meta")
    with head_bytes.Live([outside]) as live:
        views = outside[:500], outside[500:]
        first = torch.empty(100, device="meta")
        assert live.now == 400
        second = first + 1
        del first
        third = second.view(10, 10).clone()
        assert (live.now, live.peak) == (800, 800)
        del views, second, third
        assert (live.now, live.peak) == (0, 800)


class _Strides(TorchDispatchMode):
    """Bytes between the rows (or columns) of every operand and result of a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            for x in (*args, made):
                if isinstance(x, Tensor):
                    assert 1 in x.stride(), "one dimension is contiguous"
                    self.found.append(max(x.stride()) * x.element_size())
        return made


@pytest.mark.parametrize("vocab", [128_257, 32_001, 50_257, 151_936])
@pytest.mark.parametrize("passes", ["one_pass", "keep_dz", "two_pass"])
def test_strides_of_all_operands_are_multiples_of_16_bytes(
    passes: str, vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_bytes, "_PRODUCTS", {})
    with _Strides() as strides:
        peak(Shape(loss="tdpo2", tokens=3000, dim=576, vocab=vocab), passes)
    assert len(strides.found) > 20
    assert not [stride for stride in strides.found if stride % 16]


def test_the_table_has_a_cell_for_all_passes_that_are_possible() -> None:
    shapes = [Shape(loss="dpo", tokens=8, pairs=2, dim=16, vocab=64)]
    assert head_bytes.table(shapes).splitlines()[-1].split(" | ")[4] == "–"
    with pytest.raises(ValueError, match="one pair"):
        peak(shapes[0], "one_pass")
