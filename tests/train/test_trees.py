"""A tree of responses gives the loss, metrics and gradients of its pairs one by one."""

import os
from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.models.float64 import in_double, in_float64
from benchmarks.models.miniatures import miniature
from prefkit import DPO, DPOP, TDPO, SimPO
from prefkit.loss.objective import Objective
from prefkit.model.attention.compute.attend import forced
from tests.train.tree_cases import VOCAB, Reader, outcome, random_pairs

OBJECTIVES: list[Objective] = [
    DPO(beta=0.5),
    TDPO(beta=0.5, alpha=0.7),
    TDPO(beta=0.5, variant="tdpo1"),
    DPO(beta=0.5, link="ipo"),
    DPO(beta=0.5, link="robust", label_smoothing=0.1),
    DPO(beta=0.5, link="hinge"),
    DPO(beta=0.5, reduction="position"),
    DPO(beta=0.5, nll_weight=0.3),
    DPOP(beta=0.5),
    SimPO(beta=0.5),
    DPO(beta=0.5, loss_type=["bco_pair", "aot", "sft"]),
    DPO(beta=0.5, ld_alpha=0.4, use_weighting=True),
    SimPO(beta=0.5, token_weights="confpo"),
]
WAYS = [DPO(), DPO(link="ipo"), TDPO(), TDPO(variant="tdpo1")]
WAYS += [DPO(loss_type="apo_down", ld_alpha=0.4, use_weighting=True), DPO(token_weights="tis_dpo")]
TREES, PARTS = 520, 10
FAMILIES = ["llama", "qwen3", "gemma2", "gemma3_text", "mistral", "gpt2", "gpt_oss"]
# Whether FlexAttention's definition, which is slow, is asked about every tree and not every eighth.
ALL_BY_FLEX = bool(os.environ.get("PREFKIT_ALL_TREES"))


@cache
def small_llama(seed: int) -> Reader:
    """Two layers of grouped heads in fp64."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, initializer_range=0.3,
    )  # fmt: skip
    return Reader.of(LlamaForCausalLM(config).double())


@pytest.mark.parametrize("part", range(PARTS))
def test_random_trees(part: int) -> None:
    """Every objective on every kind of tree, by the CPU's attention and by FlexAttention.

    `PREFKIT_ALL_TREES=1` asks FlexAttention about all of them.
    """
    models = small_llama(0), small_llama(1)
    for seed in range(part, TREES, PARTS):
        objective = OBJECTIVES[seed // PARTS % len(OBJECTIVES)]
        pairs = random_pairs(seed)
        with in_float64():
            want = outcome(*models, pairs, "separate", objective)
            got = [outcome(*models, pairs, "tree", objective)]
            if ALL_BY_FLEX or seed % 8 == 0:
                with forced("flex"):
                    got.append(outcome(*models, pairs, "tree", objective))
        for one in got:
            assert one.deviation(want) < 1e-10, (seed, objective)


@pytest.mark.parametrize("passes", ["keep_dz", "two_pass", "one_pass"])
@pytest.mark.parametrize("objective", WAYS)
def test_every_way_to_make_the_heads_gradient(passes: str, objective: Objective) -> None:
    """Scores of their own for tokens that serve several pairs; a frozen head for one pass."""
    policy, reference = small_llama(0), small_llama(1)
    weight = policy.model.get_output_embeddings().weight  # type: ignore[operator]
    for seed in range(4):
        pairs = random_pairs(seed)
        weight.requires_grad_(passes != "one_pass")
        try:
            with in_float64():
                want = outcome(policy, reference, pairs, "separate", objective, "two_pass")
                got = outcome(policy, reference, pairs, "tree", objective, passes)
        finally:
            weight.requires_grad_(True)
        assert got.deviation(want) < 1e-10, seed


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_models(family: str) -> None:
    """Windows, sinks, soft caps, learned positions: 1e-10 in fp64, and rounding in fp32."""
    models = [Reader.of(miniature(family)) for _ in range(2)]
    cases = [(seed, random_pairs(seed, longest=8)) for seed in (3, 7, 10)]
    for seed, pairs in cases:
        objective = OBJECTIVES[seed % 3]
        want, got = (outcome(*models, pairs, layout, objective) for layout in ("separate", "tree"))
        assert got.deviation(want) < 1e-4, seed
    for reader in models:
        in_double(reader.model)
    with in_float64():
        for seed, pairs in cases:
            objective = OBJECTIVES[seed % 3]
            want = outcome(*models, pairs, "separate", objective)
            assert outcome(*models, pairs, "tree", objective).deviation(want) < 1e-10, seed
            with forced("flex"):
                assert outcome(*models, pairs, "tree", objective).deviation(want) < 1e-10, seed
