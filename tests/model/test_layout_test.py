"""Rounding never costs a model its rows without padding; a mistake does.

`largest_difference` is what a test of the whole model sees: each case of rounding is one that such
a test would refuse at 1e-4 (fp32) or 5e-2 (bf16).
"""

import logging
import re
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.models.miniatures import miniature
from prefkit.errors import ModelError
from prefkit.model.attention import install as attention
from prefkit.model.attention import layer_test
from prefkit.model.attention.by_sequence import unpacking_of
from prefkit.model.attention.install import (
    as_before,
    install_attention,
    reading,
    remove_attention,
    set_tried,
)
from prefkit.model.attention.layer_test import Call, LayerCalls, layer_off
from prefkit.model.attention.layout_row import LayoutRow, spread_ids
from prefkit.model.attention.limits import why_not
from tests.train.trainer_cases import SHAPE, VOCAB, tiny_model

DTYPES = [torch.float32, torch.bfloat16]


def deep(layers: int, scale: float, dtype: torch.dtype) -> Any:
    model = tiny_model(scale=scale, num_hidden_layers=layers).to(dtype)
    install_attention(model)
    set_tried(model, True)
    return model.eval()


def largest_difference(model: Any) -> float:
    """Of the logits of the test's row and of its sequences alone, by the largest logit."""
    row = LayoutRow.of(model.config, 60, torch.device("cpu"))
    with torch.no_grad():
        with as_before(model):
            alone = [model(input_ids=row.ids[:, places]).logits[0] for places in row.places]
        with reading(row.inputs()) as inputs:
            together = model(**inputs).logits[0]
    want = torch.cat(alone).float()
    got = torch.cat([together[places] for places in row.places]).float()
    return float((got - want).abs().max() / want.abs().max())


def figures(reason: str | None) -> tuple[float, float]:
    """The figure and the limit that a reason must state."""
    found = re.search(r"off by (\S+) of .*, limit (\S+?)\)?$", str(reason))
    assert found, reason
    return float(found[1]), float(found[2])


# -- rounding --------------------------------------------------------------------------------------


def test_rounding_that_grows_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention off by 1e-6, as another machine's may be, in a model that makes much of it."""
    exact = attention.attend

    def noisy(*operands: Any) -> Tensor:
        out = exact(*operands)
        draw = torch.Generator().manual_seed(1)
        return out * (1 + 1e-6 * torch.randn(out.shape, generator=draw).to(out.dtype))

    monkeypatch.setattr(attention, "attend", noisy)
    model = deep(32, 40.0, torch.float32)
    assert largest_difference(model) > 1e-4
    assert why_not(model, 60) is None


@pytest.mark.parametrize("layers", [64, 128])
def test_deep_models_in_bf16_read_rows(layers: int) -> None:
    model = deep(layers, 24.0, torch.bfloat16)
    assert largest_difference(model) > 5e-2
    assert why_not(model, 60) is None


class Switch(nn.Module):
    """A router of two experts; how many tokens there are decides a tie, as rounding does."""

    def forward(self, hidden: Tensor) -> Tensor:
        wobble = 1e-7 * (hidden.shape[1] - 6)
        first = (hidden.sum(-1, keepdim=True) + wobble) > 0
        return hidden + torch.where(first, 1.0, -1.0)


def test_a_router_at_a_tie_gets_a_second_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    row, layer = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0)), Switch()
    row[0, 2] = torch.tensor([1.0, -1.0, 0.5, -0.5])
    places = [torch.arange(5), torch.arange(5, 9)]
    alone = [Call(layer, (row[:, some],), {}) for some in places]
    sides = LayerCalls(Call(layer, (row,), {}), alone, places, lambda: torch.no_grad())
    assert layer_off(sides).good
    monkeypatch.setattr(layer_test, "DRAWS", 1)
    assert not layer_off(sides).good


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_real_small_model_reads_rows(smollm2: Path, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=dtype)
    install_attention(model)
    assert why_not(model, 512) is None


# -- mistakes --------------------------------------------------------------------------------------


def windowed(self: Any, hidden_states: Tensor, **given: Any) -> Any:
    """Attends to the last four tokens, but only where its attention has a name that it knows."""
    if self.config._attn_implementation == "sdpa":
        tokens = torch.arange(hidden_states.shape[1])
        near = (tokens[:, None] - tokens).clamp_min(-1)
        given["attention_mask"] = ((near >= 0) & (near < 4))[None, None]
    return type(self).forward(self, hidden_states, **given)


def shifted(self: Any, hidden_states: Tensor, **given: Any) -> Any:
    """Adds to each token a tenth of the one before it in the row, as a short convolution does."""
    out, weights = type(self).forward(self, hidden_states, **given)
    return out + 0.1 * hidden_states.roll(1, dims=1), weights


def placed(self: Any, hidden_states: Tensor, **given: Any) -> Any:
    """Scales by the place in the row instead of by the position in the sequence."""
    out, weights = type(self).forward(self, hidden_states, **given)
    return out * (1 + torch.arange(out.shape[1]) / 20)[None, :, None].to(out.dtype), weights


def whole_layer_placed(self: Any, hidden_states: Tensor, **given: Any) -> Any:
    """`placed`, by the layer itself and not by a part of it."""
    out = type(self).forward(self, hidden_states, **given)
    return out * (1 + torch.arange(out.shape[1]) / 20)[None, :, None].to(out.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mistake", [windowed, placed])
def test_a_part_that_looks_at_its_place_is_given_each_sequence_alone(
    mistake: Any, dtype: torch.dtype
) -> None:
    model = deep(3, 4.0, dtype)
    for layer in model.model.layers:
        layer.self_attn.forward = MethodType(mistake, layer.self_attn)
    wrong = largest_difference(model)
    assert why_not(model, 60) is None
    assert all(unpacking_of(layer.self_attn) for layer in model.model.layers)
    assert wrong > 0.1
    assert largest_difference(model) < (1e-6 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mistake", [shifted, whole_layer_placed])
def test_a_layer_that_computes_otherwise_is_found(mistake: Any, dtype: torch.dtype) -> None:
    """A part that looks at padding behind it cannot be unpacked, nor can a layer as a whole."""
    model = deep(3, 4.0, dtype)
    layer = model.model.layers[1]
    part = layer if mistake is whole_layer_placed else layer.self_attn
    part.forward = MethodType(mistake, part)
    reason = why_not(model, 60)
    assert "computes something else in rows without padding (layer 1 is off by" in str(reason)
    figure, limit = figures(reason)
    assert figure > 2e-2 > limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_behind_the_layers_is_seen_too(dtype: torch.dtype) -> None:
    model = deep(2, 4.0, dtype)
    norm = model.model.norm
    norm.forward = MethodType(lambda self, x: type(self).forward(self, x + 2 * x.roll(1, 1)), norm)
    reason = why_not(model, 60)
    assert "of the largest logit" in str(reason)
    figure, limit = figures(reason)
    assert figure > limit


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_that_cannot_be_run_alone(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole model is compared then; the log and a refusal say so."""
    model = deep(2, 4.0, dtype)
    layer, running = model.model.layers[1], []
    model.register_forward_pre_hook(lambda *_: running.append(True))
    model.register_forward_hook(lambda *_: running.clear())

    def in_the_model_only(self: Any, x: Tensor, **given: Any) -> Tensor:
        if not running:
            raise NotImplementedError("not by itself")
        return type(self).forward(self, x, **given)

    layer.forward = MethodType(in_the_model_only, layer)
    with caplog.at_level(logging.INFO, logger="prefkit"):
        assert why_not(model, 60) is None
    assert "was tested on the whole model only; its layers cannot be tried" in caplog.text
    part = layer.self_attn
    part.forward = MethodType(shifted, part)
    reason = str(why_not(model, 60))
    assert "of the largest logit" in reason
    assert "its layers cannot be tried one by one: LlamaDecoderLayer" in reason


def tiny(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    options = {**SHAPE, "vocab_size": VOCAB, **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    install_attention(model)
    return model


def test_attention_to_later_tokens_is_refused() -> None:
    """By its mask, and by a bias of its own that hides nothing until it is trained (Doge)."""
    assert figures(why_not(tiny("doge"), 60))[0] > 2e-2
    assert "attention to later tokens" in str(why_not(tiny("bert"), 60))


def sparse() -> Any:
    """MiniMax-M3: builds its mask of blocks only for attentions that it knows by name."""
    model = tiny(
        "minimax_m3_vl_text", dense_intermediate_size=16, rotary_dim=4, index_n_heads=1,
        index_head_dim=8, index_block_size=4, index_topk_blocks=3, index_local_blocks=1,
        layer_types=["full_attention", "minimax_m3_sparse"], mlp_layer_types=["dense", "dense"],
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def test_attention_that_looks_at_its_name_keeps_it() -> None:
    """In rows, and in whatever else the model reads after it was prepared."""
    model, ids = sparse(), torch.arange(5, 45)[None]
    with as_before(model), torch.no_grad():
        want = model(input_ids=ids).logits
    assert why_not(model, 40) is None
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, want)
    assert largest_difference(model) < 1e-6


def test_a_model_that_was_not_tried_reads_no_rows() -> None:
    """A recurrent layer would carry its state from sequence to sequence without a word."""
    model = miniature("qwen3_next")
    row = LayoutRow.of(model.config, 60, torch.device("cpu")).inputs()
    for _ in range(2):
        install_attention(model)
        with pytest.raises(ModelError, match="was not tried on rows"), reading(row) as inputs:
            model(**inputs)
        assert why_not(model, 60) is None
        with reading(row) as inputs:
            model(**inputs)
        remove_attention(model)


# -- manners ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mistake", [None, shifted])
def test_the_model_is_left_as_it_was(mistake: Any, dtype: torch.dtype) -> None:
    model = deep(2, 4.0, dtype).train()
    if mistake is not None:
        part = model.model.layers[1].self_attn
        part.forward = MethodType(mistake, part)
    model.model.layers[0].eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [(*m._forward_hooks, *m._forward_pre_hooks) for m in model.modules()]
    random = torch.get_rng_state()
    assert (why_not(model, 60) is None) == (mistake is None)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert model.config._attn_implementation == "prefkit_sdpa"
    for name, value in model.state_dict().items():
        assert value.dtype == weights[name].dtype
        assert torch.equal(value, weights[name])
    assert hooks == [(*m._forward_hooks, *m._forward_pre_hooks) for m in model.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("vocab", "most"), [(49152, 46), (264, 46), (20, 46), (3, 16)])
def test_ids_lie_inside_and_none_is_special(vocab: int, most: int) -> None:
    config = tiny_model().config
    config.vocab_size, config.eos_token_id, config.pad_token_id = vocab, [vocab // 2, 0], vocab // 3
    ids = spread_ids(config, most)
    assert torch.equal(ids, spread_ids(config, most))
    assert ids.min() >= 0
    assert ids.max() < vocab
    if vocab > 3:
        assert not {vocab // 2, 0, vocab // 3} & {*ids.tolist()}
    if vocab > 400:  # far from the special tokens at both ends, and all over the rest
        assert vocab // 8 <= ids.min() < vocab // 4
        assert vocab * 3 // 4 < ids.max() < vocab - vocab // 8
        assert len({*ids.tolist()}) == most


def test_a_weight_that_is_no_number_is_told_as_such() -> None:
    model = deep(2, 4.0, torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = torch.nan
    assert "(layer 1 holds NaN or infinity; look" in str(why_not(model, 40))


@pytest.mark.parametrize("longest", [0, 5, 9, 10, 31, 4000])
def test_the_row_holds_no_longer_sequence_than_the_data(longest: int) -> None:
    row = LayoutRow.of(tiny_model().config, longest, torch.device("cpu"))
    assert row.stream.longest <= max(longest, 9)
    assert row.ids.shape[1] == len(row.stream)
    positions = row.stream.position_ids()
    for places in row.places:
        assert torch.equal(positions[places], torch.arange(len(places)))
