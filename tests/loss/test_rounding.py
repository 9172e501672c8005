"""Losses where fp32 is short: long responses, and margins far from 0."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import DPO, SimPO
from prefkit.loss.divergences import divergence_score
from prefkit.loss.links import link_loss
from prefkit.loss.objective import Objective
from prefkit.loss.reward_losses import reward_loss
from prefkit.loss.terms import ObjectiveResult
from prefkit_kernels import TokenStats

LONG = 32_768
FAR = [sign * u for u in (1.0, 60.0, 88.8, 100.0, 1e4) for sign in (-1, 1)]
LINKS = ("sigmoid", "robust", "hinge", "ipo", "exo_pair", "discopop", "plackett_luce")


def of_stream(objective: Objective, logp: Tensor, ref_logp: Tensor) -> ObjectiveResult:
    """Of one pair, whose sides are the two halves of the tokens."""
    segments = (torch.arange(len(logp)) >= len(logp) // 2).long()
    stats = TokenStats(logp=logp, ref_logp=ref_logp)
    return objective(stats, segments)


@pytest.mark.parametrize(
    "objective", [DPO(), DPO(loss_type="aot"), SimPO(), DPO(loss_type="sft")], ids=str
)
def test_long_responses_are_summed_as_in_fp64(objective: DPO) -> None:
    """Added one after another in fp32, their log-probabilities would be off by 0.1 nats."""
    draw = torch.Generator().manual_seed(0)
    logp = -2.6 * torch.rand(2 * LONG, generator=draw)
    ref_logp = logp + 0.02 * torch.randn(2 * LONG, generator=draw)
    narrow, wide = logp.clone().requires_grad_(), logp.double().requires_grad_()
    found = of_stream(objective, narrow, ref_logp)
    expected = of_stream(objective, wide, ref_logp.double())
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    exact = torch.stack([half.sum() for half in logp.double().chunk(2)])
    assert (found.logps[0] - exact).abs().max() < 0.004  # half a unit in the last place of fp32
    found.loss.backward()
    expected.loss.backward()
    assert narrow.grad is not None
    assert wide.grad is not None
    assert (narrow.grad - wide.grad).abs().max() <= 1e-6 * wide.grad.abs().max()


def test_the_reference_of_aot_has_no_gradient() -> None:
    logp, ref_logp = (torch.linspace(-3, a, 8).requires_grad_() for a in (-1.0, -2.0))
    of_stream(DPO(loss_type="aot"), logp, ref_logp).loss.backward()
    assert logp.grad is not None
    assert logp.grad.abs().min() > 0
    assert ref_logp.grad is None


@pytest.mark.parametrize("name", LINKS)
def test_links_are_finite_far_from_zero(name: str) -> None:
    for tau in (0.05, 1.0):
        u = torch.tensor(FAR, requires_grad=True)
        losses = link_loss(name, u, 0.1, 0.2, tau)
        losses.sum().backward()
        assert torch.isfinite(losses).all()
        assert u.grad is not None
        assert torch.isfinite(u.grad).all()


def test_discopop_far_from_zero_is_its_formula() -> None:
    """−log σ(u) below, exp(−u) above: m is 0 or 1 there."""
    u = torch.tensor([-1e4, -100.0, -60.0, 60.0], requires_grad=True)
    losses = link_loss("discopop", u)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), torch.tensor([1e4, 100.0, 60.0, 8.7565e-27]))
    assert u.grad is not None
    torch.testing.assert_close(u.grad, torch.tensor([-1.0, -1.0, -1.0, -8.7565e-27]))


@pytest.mark.parametrize("name", ["nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"])
def test_losses_of_rewards_are_finite_far_from_zero(name: str) -> None:
    sums = torch.tensor(FAR)
    sums = torch.stack([sums, sums.flip(0)], 1).requires_grad_()
    losses = reward_loss(name, sums, 1.0)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert sums.grad is not None
    assert torch.isfinite(sums.grad).all()


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(
    ("name", "alpha"),
    [("forward_kl", 1.0), ("js_divergence", 1.0), ("alpha_divergence", 0.5)],
)
def test_diverging_rewards_make_no_nan(name: str, alpha: float, link: Any) -> None:
    s = torch.tensor(FAR, requires_grad=True)
    u = 0.1 * divergence_score(name, s, alpha)
    losses = link_loss(link, u, 0.1, 0.2)
    losses.sum().backward()
    assert s.grad is not None
    assert not torch.isnan(torch.stack([losses.detach(), s.grad])).any()
