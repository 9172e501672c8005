"""Contrastive scores against the paper's definition in fp64 (arXiv 2411.19943)."""

import pytest
import torch

from prefkit_kernels import contrastive_scores


@pytest.mark.parametrize("beta", [0.0, 1.0, 1.75])
@pytest.mark.parametrize("budget", [None, 4000])
def test_equals_the_normalised_ratio_of_the_two_models(beta: float, budget: int | None) -> None:
    """log s = (1+β)·log π_p − β·log π_n − log Z, written with probabilities, not logits."""
    draw = torch.Generator().manual_seed(0)
    pos, neg = (torch.randn(9, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    pos_w, neg_w = (torch.randn(50, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    targets = torch.randint(0, 50, (9,), generator=draw)
    targets[4] = -100
    ratio = (pos @ pos_w.T).softmax(1) ** (1 + beta) / (neg @ neg_w.T).softmax(1) ** beta
    expected = (ratio / ratio.sum(1, keepdim=True)).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    expected[4] = 0
    found = contrastive_scores(pos, pos_w, neg, neg_w, targets, beta, memory_budget=budget)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_low_where_the_negative_model_prefers_the_token() -> None:
    eye = torch.eye(4)
    targets = torch.tensor([0, 1])
    likes_zero, likes_one = 5 * eye[[0, 0]], 5 * eye[[1, 1]]
    scores = contrastive_scores(likes_zero, eye, likes_one, eye, targets)
    assert scores[0] > 0.99
    assert scores[1] < 1e-3


def test_bias_and_unequal_vocabularies() -> None:
    """Classes that one model lacks are left out: −β·(−inf) would give them all the mass."""
    draw = torch.Generator().manual_seed(1)
    pos, pos_w = torch.randn(3, 8, generator=draw), torch.randn(20, 8, generator=draw)
    neg, neg_w = torch.randn(3, 5, generator=draw), torch.randn(17, 5, generator=draw)
    bias = torch.randn(20, generator=draw)
    targets = torch.tensor([0, 5, 16])
    z = 2 * (pos @ pos_w[:17].T + bias[:17]) - neg @ neg_w.T
    expected = z.softmax(1).gather(1, targets[:, None])[:, 0]
    found = contrastive_scores(pos, pos_w, neg, neg_w, targets, pos_bias=bias)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_what_models_do_to_their_logits() -> None:
    """Granite's scale and Gemma-2's softcap, each of one model only."""
    draw = torch.Generator().manual_seed(4)
    pos, neg = (torch.randn(5, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    pos_w, neg_w = (3 * torch.randn(30, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(30, generator=draw, dtype=torch.float64)
    bias[29] = -torch.inf
    targets = torch.randint(0, 29, (5,), generator=draw)
    z = 2.5 * 4.0 * torch.tanh((pos @ pos_w.T + bias) / 4.0) - 1.5 * 0.25 * (neg @ neg_w.T)
    expected = z[:, :29].softmax(1).gather(1, targets[:, None])[:, 0]
    how = {"pos_bias": bias, "pos_softcap": 4.0, "neg_logit_scale": 0.25}
    found = contrastive_scores(pos, pos_w, neg, neg_w, targets, 1.5, **how)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="softcap must be > 0"):
        contrastive_scores(pos, pos_w, neg, neg_w, targets, neg_softcap=0.0)


def test_autocast_does_not_round_the_logits() -> None:
    draw = torch.Generator().manual_seed(2)
    pos, neg = (torch.randn(6, 64, generator=draw) for _ in range(2))
    pos_w, neg_w = (torch.randn(500, 64, generator=draw) for _ in range(2))
    targets = torch.randint(0, 500, (6,), generator=draw)
    low = [x.bfloat16() for x in (pos, pos_w, neg, neg_w)]
    expected = contrastive_scores(*(x.double() for x in low), targets).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for operands in (low, [low[0], low[1].float(), low[2], low[3]]):  # mixed dtypes are cast
            found = contrastive_scores(*operands, targets)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-12)


def test_a_class_that_both_models_mask_spoils_nothing() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(4, 5, generator=draw)
    weight, bias = torch.randn(9, 5, generator=draw), torch.zeros(9)
    bias[8] = -torch.inf
    targets = torch.tensor([0, 1, 2, 3])
    masked = contrastive_scores(x, weight, 2 * x, weight, targets, pos_bias=bias, neg_bias=bias)
    without = contrastive_scores(x, weight[:8], 2 * x, weight[:8], targets)
    torch.testing.assert_close(masked, without)
