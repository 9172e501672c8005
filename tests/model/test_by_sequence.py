"""Modules that read each sequence of a row by itself: which, with what, and to the same numbers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import (
    and_masks,
    blockwise_overlay,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    packed_sequence_compatibility_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from benchmarks.models.miniatures import miniature
from prefkit.data.batch.sequences import batches_of, sequences_of
from prefkit.data.batch.stream import Reach, Stream
from prefkit.errors import ModelError
from prefkit.model.attention.by_sequence import Unpacking, unpack
from prefkit.model.attention.current_row import hand_down, in_row
from prefkit.model.attention.install import install_attention, reading, remove_attention
from prefkit.model.attention.limits import why_not
from prefkit.model.attention.mixers import unpackings_of
from prefkit.model.attention.row_mask import RowMask
from prefkit.model.fsdp_units import copy_without_weights

ROW = Stream.of((9, 5, 4), 7, (30, 2, 0, 3), 1)
CPU = torch.device("cpu")


# -- sequences -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [1, 2, 5, 9])
def test_every_token_comes_back_once(shares: int) -> None:
    batches = [b for share in range(shares) for b in batches_of(ROW, CPU, share, shares)]
    into = torch.cat([batch.into for batch in batches])
    assert torch.equal(into.sort().values, torch.arange(len(ROW)))
    for batch in batches:
        assert torch.equal(batch.places.flatten()[batch.kept], batch.into)


def test_sequences_of_about_one_length_share_a_batch() -> None:
    assert sorted(len(places) for places, _ in sequences_of(ROW)) == [1, 7, 13, 14, 32, 33]
    assert [batch.lengths for batch in batches_of(ROW, CPU)] == [(33, 32), (14, 13, 7), (1,)]
    (whole,) = batches_of(ROW, CPU, together=True)
    assert whole.lengths == (33, 32, 14, 13, 7, 1)
    assert batches_of(ROW, CPU, 5, 6, together=True)[0].places.shape == (1, 33)


class Recurrence(nn.Module):
    """h_t = h_{t-1} / 2 + x_t, with what transformers hands to such a layer."""

    def forward(self, hidden: Tensor, positions: Tensor, mask: Any = None) -> tuple[Tensor, None]:
        assert torch.equal(positions[:, 0], torch.zeros(len(positions), dtype=torch.int64))
        state, out = torch.zeros_like(hidden[:, 0]), []
        for x in hidden.unbind(1):
            state = state / 2 + x
            out.append(state)
        return torch.stack(out, 1), None


def test_a_recurrence_in_a_row_is_that_of_each_sequence() -> None:
    module, hidden = Recurrence(), torch.randn(1, len(ROW), 3, dtype=torch.float64)
    hidden.requires_grad_()
    unpack(module, Unpacking("Recurrence", {"args.0": 1, "args.1": 1}))
    with in_row(ROW):
        got, nothing = module(hidden, ROW.position_ids()[None])
    assert nothing is None
    weights = torch.randn_like(got)
    want, terms = torch.zeros_like(got), []
    for places, before in sequences_of(ROW):
        out, _ = Recurrence()(hidden[:, places], torch.arange(len(places))[None])
        want[:, places[before:]] = out[:, before:].detach()
        terms.append((out[:, before:] * weights[:, places[before:]]).sum())
    assert torch.equal(got, want)
    mine, theirs = (
        torch.autograd.grad(total, hidden)[0] for total in ((got * weights).sum(), sum(terms))
    )
    assert (mine - theirs).abs().max() < 1e-14
    alone = hidden[:, :5]
    assert torch.equal(
        module(alone, torch.arange(5)[None])[0], Recurrence()(alone, torch.arange(5)[None])[0]
    )


# -- masks -----------------------------------------------------------------------------------------


def mask_of(function: Any) -> RowMask:
    made_with = {"mask_function": function, "device": CPU, "attention_mask": None}
    return RowMask.of(ROW, "sdpa", made_with)


@pytest.mark.parametrize(
    ("function", "reach"),
    [
        (causal_mask_function, Reach()),
        (sliding_window_causal_mask_function(5), Reach(5)),
        (chunked_causal_mask_function(6, torch.zeros(1, dtype=torch.int64)), Reach(chunk=6)),
    ],
)
def test_a_mask_says_how_far_back_a_layer_sees(function: Any, reach: Reach) -> None:
    """Also within what transformers adds for sequences that it finds by their positions."""
    positions = ROW.position_ids()[None]
    packed = packed_sequence_compatibility_function(function, positions, positions)
    none = blockwise_overlay(torch.full((1, len(ROW)), -1))
    for made in (function, packed, or_masks(packed, none)):
        mask = mask_of(made)
        assert mask.checked("A") == reach
        whole = slice(None)
        assert mask[whole, whole, slice(0, None), whole] is mask
        got = mask.tensor(2, 13, "A", always=True)
        want = sdpa_mask(1, 13, 13, mask_function=function, allow_is_causal_skip=False)
        assert torch.equal(got, want.expand(2, -1, -1, -1))
    assert mask_of(causal_mask_function).tensor(2, 13, "A", always=False) is None


def test_any_other_mask_is_refused_by_name() -> None:
    def striped(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (query - key) % 2 == 0

    blocks = blockwise_overlay(torch.zeros((1, len(ROW))))
    for function, words in (
        (and_masks(causal_mask_function, striped), "test_any_other_mask"),
        (or_masks(causal_mask_function, blocks), "or_masks"),
        (striped, "attention to later tokens"),
    ):
        with pytest.raises(ModelError, match=f"A attends under a mask of its own.*{words}"):
            mask_of(function).checked("A")
    with pytest.raises(TypeError, match="has no mask of queries"):
        mask_of(causal_mask_function)[:, :, 3:]


# -- models ----------------------------------------------------------------------------------------

UNPACKED = {
    "llama4_text": "Llama4TextAttention",
    "deepseek_v32": "DeepseekV32Attention",
    "qwen3_next": "Qwen3NextGatedDeltaNet",
    "jamba": "JambaMambaMixer",
    "mamba": "MambaMixer",
    "lfm2": "Lfm2ShortConv",
}


def gradients(model: Any, **options: Any) -> dict[str, Tensor]:
    """Of a sum of the logits of a row."""
    model.zero_grad()
    if options:
        model.gradient_checkpointing_enable(options)
    ids = torch.randint(5, 300, (1, len(ROW)), generator=torch.Generator().manual_seed(0))
    row = {"input_ids": ids, "stream": ROW, "position_ids": ROW.position_ids()[None]}
    with reading(row) as inputs:
        total = model(**inputs).logits[..., ::7].square().sum()
    total.backward()  # outside of `reading`: what is recomputed must know its row all the same
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", UNPACKED)
def test_what_is_recomputed_knows_its_row(model_type: str) -> None:
    model = miniature(model_type)
    install_attention(model)
    assert why_not(model, 40) is None
    assert {how.kind for how in unpackings_of(model).values()} == {UNPACKED[model_type]}
    model.train()
    want = gradients(model)
    for reentrant in (False, True):
        got = gradients(model, use_reentrant=reentrant)
        assert got.keys() == want.keys()
        for name, grad in got.items():
            assert (grad - want[name]).abs().max() <= 1e-4 * want[name].abs().max() + 1e-9, name


def test_a_layer_that_lost_its_row_says_so() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    layer = Layer()
    hand_down(layer)

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            with in_row(ROW):
                return layer(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return layer(grad)

    total = Again.apply(torch.ones(3, requires_grad=True)).sum()
    with pytest.raises(ModelError, match=r"Layer is recomputed .* Leave gradient_check"):
        total.backward()


@pytest.mark.parametrize("model_type", UNPACKED)
def test_without_weights_a_small_model_tells(model_type: str) -> None:
    """The same parts are unpacked as where the weights are, and all of it is taken back."""
    model = miniature(model_type)
    empty = copy_without_weights(model)
    for one in (model, empty):
        install_attention(one)
        assert why_not(one, 40) is None
    kinds = [{how.kind for how in unpackings_of(one).values()} for one in (model, empty)]
    assert kinds[0] == kinds[1]
    assert unpackings_of(model).keys() <= unpackings_of(empty).keys()
    remove_attention(model)
    assert not unpackings_of(model)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_prepared_model_can_be_pickled(tmp_path: Path) -> None:
    model = miniature("qwen3_next")
    install_attention(model)
    assert why_not(model, 40) is None
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert unpackings_of(loaded) == unpackings_of(model)
    want, got = gradients(model), gradients(loaded)
    assert all(torch.equal(got[name], grad) for name, grad in want.items())


@pytest.mark.parametrize("model_type", ["llama", "qwen3_next", "mamba"])
def test_a_row_that_nothing_reads_is_refused(model_type: str) -> None:
    """Without preparation, after it was taken back, and by the body alone."""
    model = miniature(model_type)
    row = {"input_ids": torch.arange(5, 5 + len(ROW))[None], "stream": ROW}
    row["position_ids"] = ROW.position_ids()[None]

    def refused(words: str) -> None:
        for part in (model, model.base_model):
            with pytest.raises(ModelError, match=words), reading(row) as inputs:
                part(**inputs)

    refused("did not read the batch as a row")
    install_attention(model)
    refused("was not tried on rows without padding")
    assert why_not(model, 40) is None
    with reading(row) as inputs:
        model.base_model(**inputs)
    remove_attention(model)
    refused("did not read the batch as a row")
    install_attention(model)
    again = type(model)(copy.deepcopy(model.config))  # which names our attention
    install_attention(again)
    with pytest.raises(ModelError, match="was not tried"), reading(row) as inputs:
        again(**inputs)
