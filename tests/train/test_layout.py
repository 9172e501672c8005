"""The layouts give the same loss and gradients, for every architecture, packed or not."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from benchmarks.models.miniatures import miniature
from prefkit import TDPO, PreferenceTrainer, fused_preference_loss
from prefkit.data import PairCollator
from prefkit.data.pair import TokenizedPair, TokenizedSide
from prefkit.errors import ConfigError, ModelError
from prefkit.model.attention.by_sequence import unpacking_of
from prefkit.model.attention.install import install_attention, reading, remove_attention
from prefkit.model.attention.limits import why_not
from prefkit.model.head.fused import install
from prefkit.train.rows.layout import describe_unpacked
from tests.train.trainer_cases import (
    CONFIGS,
    ROWS,
    SHAPE,
    VOCAB,
    byte_tokenizer,
    config,
    logs_of,
    tiny_model,
    trainer,
    weights_of,
)

FAMILIES: dict[str, Any] = {
    "llama": CONFIGS["llama"],
    "qwen2": lambda: Qwen2Config(**SHAPE, vocab_size=VOCAB),
    "qwen3": lambda: Qwen3Config(**SHAPE, vocab_size=VOCAB),
    "gemma2": lambda: CONFIGS["gemma2"](attn_logit_softcapping=2.0),
    "mistral": lambda: MistralConfig(**SHAPE, vocab_size=VOCAB, sliding_window=None),
    "gpt2": CONFIGS["gpt2"],
}


@cache
def model_of(family: str) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]())
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform attention
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    install_attention(model)
    install(model)
    assert why_not(model, 256) is None
    return model.eval()


def side(ids: list[int], scored_from: int, seed: int) -> TokenizedSide:
    scored = np.arange(len(ids)) >= scored_from
    weights = np.random.default_rng(seed).uniform(0.2, 1.0, len(ids)).astype(np.float32)
    ids_L = np.array(ids, dtype=np.int32)
    return TokenizedSide(ids=ids_L, scored=scored, weights=weights * scored, eos=False)


def pair(prompt: int, common: int, tails: tuple[int, int], seed: int) -> TokenizedPair:
    """Prompt, then `common` scored tokens that both sides begin with, then what differs."""
    draw = np.random.default_rng(seed)
    front = draw.integers(1, 250, prompt + common).tolist()
    # The first token after the common part differs: 250 on one side, 251 on the other.
    ends = [
        [250 + k, *draw.integers(1, 250, n - 1).tolist()] if n else [] for k, n in enumerate(tails)
    ]
    both = [side(front + end, prompt, seed + k) for k, end in enumerate(ends)]
    return TokenizedPair(
        chosen=both[0], rejected=both[1], shared=prompt + common, source="test", row=seed
    )


def loss_and_gradients(
    family: str, pairs: list[TokenizedPair], layout: Any
) -> tuple[float, dict[str, Tensor]]:
    """TDPO, whose KL at a common token does not cancel, with a weight for every token."""
    model = model_of(family)
    batch = PairCollator(257, layout=layout)(pairs)
    vocab, width = model.get_output_embeddings().weight.shape
    generator = torch.Generator().manual_seed(5)
    reference = torch.randn(vocab, width, generator=generator)

    def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        flat = hidden.reshape(-1, width)[batch["positions"]]
        out = fused_preference_loss(
            flat,
            weight,
            batch["targets"],
            batch["segments"],
            TDPO(beta=0.3, alpha=0.7),
            weights=batch["weights"],
            # A function of the policy's own hidden states: as good as another model's.
            ref_hidden=flat.detach().flip(1),
            ref_weight=reference,
        )
        return out.loss, {}

    model.zero_grad()
    with reading(batch) as inputs:
        loss = model(**inputs, prefkit_request=request).value
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


def assert_same(family: str, pairs: list[TokenizedPair]) -> None:
    want_loss, want = loss_and_gradients(family, pairs, "padded")
    for layout in ("shared", "separate"):
        loss, grads = loss_and_gradients(family, pairs, layout)
        assert loss == pytest.approx(want_loss, rel=2e-5, abs=2e-6), layout
        assert grads.keys() == want.keys()
        for name, gradient in grads.items():
            bound = 5e-5 * float(want[name].abs().max()) + 1e-7
            assert float((gradient - want[name]).abs().max()) <= bound, (layout, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_agree(family: str) -> None:
    """A step pair, common first tokens, a side that the other continues, a prompt of one token."""
    pairs = [
        pair(9, 0, (5, 3), 0),
        pair(4, 3, (2, 6), 10),
        pair(3, 2, (0, 4), 20),
        pair(1, 0, (7, 1), 30),
    ]
    for one in pairs:
        assert_same(family, [one])
    assert_same(family, pairs)


PAIRS = st.tuples(
    st.integers(0, 12), st.integers(0, 4), st.integers(0, 6), st.integers(0, 6), st.integers(0, 99)
)


def drawn(numbers: tuple[int, int, int, int, int]) -> TokenizedPair:
    prompt, common, chosen, rejected, seed = numbers
    # Each side needs a token to score and one to predict it from.
    least = 0 if common and common + prompt > 1 else 2
    tails = (max(chosen, least), max(rejected, least))
    return pair(prompt, common, tails, seed)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(family=st.sampled_from(sorted(FAMILIES)), numbers=st.lists(PAIRS, min_size=1, max_size=4))
def test_any_lengths_agree(family: str, numbers: list[tuple[int, int, int, int, int]]) -> None:
    """Prefixes of 0 tokens, common first tokens, empty sides: whatever the lengths are."""
    assert_same(family, [drawn(one) for one in numbers])


# -- the whole trainer -----------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"method": "tdpo2"}])
def test_training_does_not_depend_on_the_layout(tmp_path: Path, changes: dict[str, Any]) -> None:
    seen = {}
    for layout in ("shared", "separate"):
        model = tiny_model(scale=3.0)
        trained = trainer(tmp_path / layout, model, layout=layout, eval_dataset=ROWS[:5], **changes)
        assert trained.layout == layout
        trained.train()
        seen[layout] = (logs_of(trained), trained.evaluate(), weights_of(model))
    last = {layout: logs[-1] for layout, (logs, _, _) in seen.items()}
    assert last["shared"]["num_tokens_read"] < last["separate"]["num_tokens_read"]
    assert last["shared"]["num_tokens"] == last["separate"]["num_tokens"]
    assert last["separate"]["num_tokens"] == last["separate"]["num_tokens_read"]
    for one, other in zip(seen["shared"][0], seen["separate"][0], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["active_weight_fraction"] == pytest.approx(other["active_weight_fraction"])
        for name in ("logits/chosen", "logits/rejected", "mean_token_accuracy"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
    for key in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen", "eval_logits/rejected"):
        assert seen["shared"][1][key] == pytest.approx(seen["separate"][1][key], rel=1e-4, abs=1e-6)


def test_rows_packed_to_a_budget_train_the_same(tmp_path: Path) -> None:
    """All pairs in one packed row are the step of one batch of all pairs."""
    losses = {}
    for name, options in {
        "packed": {"tokens_per_batch": 4096},
        "batch": {"per_device_train_batch_size": len(ROWS), "per_device_eval_batch_size": 3},
    }.items():
        one = trainer(
            tmp_path / name, tiny_model(scale=3.0), max_steps=3, eval_dataset=ROWS[:7], **options
        )
        one.train()
        losses[name] = [line["loss"] for line in logs_of(one)] + [one.evaluate()["eval_loss"]]
    assert losses["packed"] == pytest.approx(losses["batch"], rel=1e-4)


def longrope(limit: int) -> Any:
    """A model whose rotations depend on the longest row from `limit` tokens on."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = Phi3Config(
        **SHAPE, vocab_size=VOCAB, original_max_position_embeddings=limit,
        rope_parameters={**scaling, "rope_theta": 1e4},
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def test_a_scaling_by_the_length_of_the_row_gets_padded_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trained = trainer(tmp_path, longrope(12))
    assert trained.layout == "padded"
    assert "length of the whole row from 12 tokens on, and a sequence has 15" in caplog.text
    assert not trained.model.config._attn_implementation.startswith("prefkit")
    trained.train()
    with pytest.raises(
        ModelError,
        match=r"layout: shared cannot be had.*from 12 tokens.*Leave layout at auto",
    ):
        trainer(tmp_path, longrope(12), layout="shared")
    model = longrope(12)
    install_attention(model)
    assert why_not(model, 12) is None
    assert "12 tokens" in str(why_not(model, 13))


def test_longer_rows_in_a_later_evaluation_are_refused(tmp_path: Path) -> None:
    trained = trainer(tmp_path, longrope(16))
    assert trained.layout == "tree"
    longer = [{"prompt": "x" * 20, "chosen": " yes", "rejected": " no"}]
    with pytest.raises(ConfigError, match="longer sequences than those the layout was chosen for"):
        trained.evaluate(longer)


def test_modules_in_evaluation_mode_stay_there(tmp_path: Path) -> None:
    model = tiny_model()
    model.train()
    model.model.layers[0].eval()
    install_attention(model)
    assert why_not(model, 10) is None
    assert not model.model.layers[0].training
    assert model.model.layers[1].training


def test_dropout_gets_padded_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert trainer(tmp_path, disable_dropout=False).layout == "padded"
    assert "disable_dropout is off" in caplog.text


def test_a_model_after_training_still_reads_padded_rows(tmp_path: Path) -> None:
    """Padding on the left and generation need the masks that a stream goes without."""
    plain, trained = tiny_model(scale=3.0), tiny_model(scale=3.0)
    trainer(tmp_path, trained)
    ids = torch.tensor([[257, 257, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert trained.config._attn_implementation == "prefkit_sdpa"
    with torch.no_grad():
        want = plain(input_ids=ids, attention_mask=mask).logits
        got = trained(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(got[mask.bool()], want[mask.bool()])
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 257}
    want_ids = plain.generate(input_ids=ids, attention_mask=mask, **options)
    assert torch.equal(trained.generate(input_ids=ids, attention_mask=mask, **options), want_ids)
    trained.save_pretrained(tmp_path / "saved")
    assert "prefkit" not in (tmp_path / "saved" / "config.json").read_text()


def test_a_batch_size_beside_a_token_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="per_device_train_batch_size and tokens_per_batch both"):
        trainer(tmp_path, tokens_per_batch=100, per_device_train_batch_size=2)
    with pytest.raises(ConfigError, match="tokens_per_batch is 0; it must be 1 or more"):
        trainer(tmp_path, tokens_per_batch=0)
    with pytest.raises(ConfigError, match=r"row \d+: the pair has \d+ tokens in layout tree, more"):
        trainer(tmp_path, tokens_per_batch=5)


def test_a_layout_beside_an_own_collator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layout is 'shared', but a data_collator of your own"):
        PreferenceTrainer(
            tiny_model(),
            args=config(tmp_path, layout="shared"),
            data_collator=PairCollator(257),
            train_dataset=ROWS,
            processing_class=byte_tokenizer(),
        )


def test_the_mask_brings_the_row_where_keywords_are_dropped() -> None:
    model = tiny_model(scale=3.0)
    install_attention(model)
    inner = model.model.forward
    model.model.forward = lambda *a, prefkit_stream=None, **kw: inner(*a, **kw)
    assert why_not(model, 10) is None
    assert not any(unpacking_of(module) for module in model.modules())


def test_biases_of_older_code_get_padded_rows() -> None:
    biases = AutoModelForCausalLM.from_config(
        BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=VOCAB)
    )
    install_attention(biases)
    assert "BloomForCausalLM does not read rows without padding (Bloom" in str(why_not(biases, 10))
    remove_attention(biases)
    assert not any(unpacking_of(module) for module in biases.modules())


def test_shared_keys_and_reentrant_checkpointing_are_refused(tmp_path: Path) -> None:
    """transformers' gradients are wrong there, whoever trains."""
    with pytest.raises(ConfigError, match=r"use_reentrant, under which layers of Gemma3n.*share"):
        trainer(
            tmp_path,
            miniature("gemma3n_text", vocab_size=VOCAB, vocab_size_per_layer_input=VOCAB),
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        )


def test_weights_that_are_no_numbers_end_the_run_before_it_begins(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = torch.nan
    with pytest.raises(ModelError, match=r"layer 1 holds NaN or infinity.*undamaged"):
        trainer(tmp_path, model)


def test_what_reads_a_prefix_twice_is_told(tmp_path: Path) -> None:
    model = miniature("qwen3_next", vocab_size=VOCAB)
    assert describe_unpacked(model) is None
    trained = trainer(tmp_path, model)
    words = str(describe_unpacked(trained.model))
    assert words.startswith("Qwen3NextGatedDeltaNet (1 modules) cannot read several sequences")
