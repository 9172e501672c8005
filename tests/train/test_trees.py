"""A tree of responses gives the loss, metrics and gradients of its pairs one by one."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.models.float64 import in_float64
from prefkit import DPO, DPOP, TDPO, SimPO
from prefkit.loss.objective import Objective
from prefkit.model.attention.install import install_attention
from prefkit.model.attention.limits import why_not
from prefkit.model.head.fused import install
from tests.train.tree_cases import VOCAB, outcome, random_pairs

OBJECTIVES: list[Objective] = [
    DPO(beta=0.5),
    TDPO(beta=0.5, alpha=0.7),
    TDPO(beta=0.5, variant="tdpo1"),
    DPO(beta=0.5, link="ipo"),
    DPO(beta=0.5, link="robust", label_smoothing=0.1),
    DPO(beta=0.5, reduction="position"),
    DPO(beta=0.5, nll_weight=0.3),
    DPOP(beta=0.5),
    SimPO(beta=0.5),
]
TREES = 504


def small_llama(seed: int) -> nn.Module:
    """Two layers of grouped heads in fp64, ready for rows of trees."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    install(model)
    install_attention(model)
    assert why_not(model, 64) is None
    return model


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    return small_llama(0), small_llama(1)


@pytest.mark.parametrize("part", range(8))
def test_random_trees(models: tuple[nn.Module, nn.Module], part: int) -> None:
    for seed in range(part, TREES, 8):
        objective = OBJECTIVES[seed // 8 % len(OBJECTIVES)]
        pairs = random_pairs(seed)
        with in_float64():
            want = outcome(*models, pairs, "separate", objective)
            got = outcome(*models, pairs, "tree", objective)
        assert got.deviation(want) < 1e-10, (seed, objective)
