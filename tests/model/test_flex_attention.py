"""FlexAttention over trees: its mask and score against the definition, its blocks, its compiling.

On a CPU torch runs it by its definition, all scores at once; the kernel itself needs a GPU.
"""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from prefkit.data.batch.stream import EVERYTHING, Reach, Stream
from prefkit.model.attention.compute import flex as flexible
from prefkit.model.attention.compute import trial
from prefkit.model.attention.compute.flex import Blocks, believed, block_mask, flex
from prefkit.model.attention.compute.trial import Call
from tests.model.stream_cases import STREAMS, allowed, check, dense, operands, random_trees

CPU = torch.device("cpu")
CASES = [  # reach, softcap, sinks, numbers of a value, query heads to a key head
    (EVERYTHING, None, False, 8, 2),
    (EVERYTHING, 2.0, True, 6, 1),
    (Reach(5), None, True, 8, 3),
    (Reach(1), 2.0, False, 8, 2),
    (Reach(chunk=4), None, False, 6, 2),
    (Reach(6, 9), 2.0, True, 8, 2),
]


def compare(stream: Stream, case: tuple, bound: float = 1e-13) -> None:
    reach, cap, sinks, values, groups = case
    inputs = operands(stream, groups=groups, values=values, sinks=sinks)
    reach = reach.within(stream.longest)
    sink = inputs[3] if sinks else None
    got = flex(*inputs[:3], stream, 0.3, cap, reach, sink)  # type: ignore[misc]
    check(got, dense(*inputs[:3], stream, 0.3, cap, reach, sink), inputs, bound)  # type: ignore[misc]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["shared", "packed", "deep"])
def test_streams_equal_the_definition(name: str, case: tuple) -> None:
    compare(STREAMS[name], case)


@pytest.mark.parametrize("seed", range(12))
def test_any_tree_equals_the_definition(seed: int) -> None:
    compare(random_trees(seed), CASES[seed % len(CASES)])


def test_over_a_block() -> None:
    compare(STREAMS["over a block"], CASES[2])


@pytest.mark.parametrize(
    "reach", [EVERYTHING, Reach(17), Reach(20), Reach(chunk=16), Reach(30, 16)]
)
def test_blocks_hold_all_some_or_none(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against who sees whom, token by token: full ones exactly, and without a reach all three."""
    monkeypatch.setattr(flexible, "BLOCK", 8)
    found = torch.zeros(3, dtype=torch.int64)
    for stream in (*map(random_trees, range(20)), STREAMS["over a block"], Stream.of(1)):
        blocks = Blocks.of(stream, reach)
        count = len(blocks.full)
        mask = torch.eye(8 * count, dtype=torch.bool)  # what fills the last block sees itself
        mask[: len(stream), : len(stream)] = allowed(stream, reach)
        seen = mask.unflatten(0, (count, 8)).unflatten(2, (count, 8)).transpose(1, 2).flatten(2)
        assert torch.equal(blocks.full, seen.all(2))
        some = blocks.full | blocks.partial
        assert not (seen.any(2) & ~some).any()
        assert not (blocks.full & blocks.partial).any()
        if reach == EVERYTHING:
            assert torch.equal(some, seen.any(2))
        found += torch.stack([blocks.full.sum(), blocks.partial.sum(), (~some).sum()])
        # The kernel is told the same, and by the same function of two tokens.
        told = block_mask(stream, CPU, reach)
        assert torch.equal(told.to_dense()[0, 0].bool(), some)
        where = torch.arange(8 * count)
        assert torch.equal(told.mask_mod(None, None, where[:, None], where), mask)  # type: ignore[arg-type]
    assert found.all(), "no case of one kind was tried"


def test_a_mask_is_made_once_a_stream_and_reach() -> None:
    stream = STREAMS["deep"]
    assert block_mask(stream, CPU) is block_mask(stream, CPU)
    assert block_mask(stream, CPU) is not block_mask(stream, CPU, Reach(3))


def test_a_new_length_compiles_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, as far as its kernel, with gradients; torch refuses those on a CPU only
    before it has compiled anything."""
    from torch.nn.attention import flex_attention

    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *operands: None)
    monkeypatch.setattr(flexible, "_by_definition", partial(flexible._compiled, backend=counter))
    case = (Reach(40), 2.0, True, 8, 2)
    # First as many blocks as key heads: equal by chance, which must not be taken for a rule.
    for stream in (Stream.of((90, 60, 30)), Stream.of((300, (20, 9), 40)), Stream.of((1, 70))):
        compare(stream, case, 1e-12)
    assert counter.frame_count == 1


def test_it_is_tried_before_it_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    believed.cache_clear()
    call = Call(4, 2, 16, 16, 3.0, windowed=True, sinks=True)
    assert believed(CPU, torch.float32, call)
    assert believed(CPU, torch.bfloat16, call)

    def without_window(*given: object) -> torch.Tensor:
        return flex(*given[:6], EVERYTHING, *given[7:])  # type: ignore[arg-type]

    words = ("FlexAttention", without_window, CPU, torch.float32, call, trial.PLAIN)
    with caplog.at_level("WARNING"):
        assert not trial.agrees(*words)
    assert "FlexAttention of this GPU is left aside (output off by" in caplog.text
    assert "plain torch takes its place" in caplog.text
