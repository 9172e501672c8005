"""The weights that prefkit ships, against their papers' formulas in fp64."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import DPO, SimPO, fused_preference_loss
from prefkit.loss.sides import Sides
from prefkit.loss.weights.hooks import SHIPPED
from prefkit.loss.weights.of_tokens import confpo, full_step_dpo, tis_dpo
from prefkit_kernels import TokenStats, token_stats
from tests.loss.test_objectives import SEGMENTS, sample
from tests.loss.test_weights import SCORED, alone, quantities, tokens_of


def made_weights(objective: DPO, x: dict[str, Tensor]) -> Tensor:
    """(T,) the factors that a shipped function makes of the sample."""
    found: dict[str, Tensor] = {}
    hook = objective._hooks[0]
    assert hook is not None

    def watch(**given: Any) -> Tensor:
        found["weights"] = hook.function(**given)
        return found["weights"]

    object.__setattr__(objective, "_hooks", (type(hook)("o", "n", watch, hook.reads), None))
    fused_preference_loss(objective=objective, **x)
    return found["weights"]


def test_confpo_selects_tokens_below_the_mean_of_their_response() -> None:
    x = sample(False)
    p = quantities(x)["logp"].exp()
    found = made_weights(DPO(token_weights="confpo"), x)
    for segment in range(4):
        mean = sum(float(p[t]) for t in tokens_of(segment)) / len(tokens_of(segment))
        for t in tokens_of(segment):
            assert float(found[t]) == float(float(p[t]) < mean), t
    x["segments"][[1 + tokens_of(1)[0]]] = -1  # one token has no mean above it: the pair is out
    alone = made_weights(DPO(token_weights="confpo"), x)
    assert (alone[tokens_of(0) + tokens_of(1)] == 0).all()
    assert torch.equal(alone[10:], found[10:])


def test_confpo_selects_none_of_equally_likely_tokens() -> None:
    """The pair then has no gradient, and the loss of two equal rewards."""
    for tokens in range(1, 60):
        for weight in (1.0, 0.3):
            logp = torch.full((tokens + 2,), -1.2345)
            logp[-2:] = torch.tensor([-1.0, -3.0])
            logp.requires_grad_()
            segments = torch.tensor([0] * tokens + [1, 1])
            weights = torch.full_like(logp, weight)
            assert not confpo(logp.detach(), Sides.of(segments, weights, logp)).any(), tokens
            made = SimPO(beta=1.5, margin=1.6, token_weights="confpo")
            loss = made(TokenStats(logp=logp), segments, weights).loss
            assert loss.item() == pytest.approx(math.log1p(math.exp(1.6)))
            loss.backward()
            assert logp.grad is not None
            assert not logp.grad.any()


def test_confpo_with_simpo_is_the_papers_loss() -> None:
    """−log σ(β·mean over selected log π(y_w) − β·mean over selected log π(y_l) − γ)."""
    x = sample(False)
    q = quantities(x)
    found = fused_preference_loss(
        objective=SimPO(beta=1.5, margin=1.6, token_weights="confpo"), **x
    )
    losses = []
    for i in (0, 1):
        means = []
        for segment in (2 * i, 2 * i + 1):
            logp = q["logp"][tokens_of(segment)]
            means.append(logp[logp.exp() < logp.exp().mean()].mean())
        losses.append(torch.nn.functional.softplus(1.6 - 1.5 * (means[0] - means[1])))
    torch.testing.assert_close(found.loss.detach(), torch.stack(losses).mean())


def test_ld_dpo_lightens_what_is_beyond_the_shorter_response() -> None:
    found = made_weights(DPO(token_weights="ld_dpo"), sample(True))
    for a, b in ((0, 1), (1, 0), (2, 3), (3, 2)):
        for place, t in enumerate(tokens_of(a)):
            assert float(found[t]) == (0.5 if place >= len(tokens_of(b)) else 1.0)


def test_tis_dpo_is_the_clipped_ratio_and_its_inverse() -> None:
    x = sample(True)
    q = quantities(x)
    made = DPO(token_weights=partial(tis_dpo, mu=0.7, low=-0.3, high=0.9))
    found = made_weights(made, x)
    for t in SCORED:
        r = min(max(float(q["logp"][t] - q["ref_logp"][t]), -0.3), 0.9)
        sign = 1 if SEGMENTS[t] % 2 == 0 else -1
        assert float(found[t]) == pytest.approx(math.exp(sign * 0.7 * r), rel=1e-12)


def test_full_step_dpo_is_a_softmax_of_rewards() -> None:
    x = sample(True)
    x["weights"][3] = 0.0
    found = made_weights(DPO(token_weights=partial(full_step_dpo, gamma=2.0)), x) * x["weights"]
    for segment in range(4):
        tokens = [t for t in tokens_of(segment) if x["weights"][t] > 0]
        sign = 1 if segment % 2 == 0 else -1
        shares = [math.exp(sign * 2.0 * float(x["weights"][t])) for t in tokens]
        for t, share in zip(tokens, shares, strict=True):
            want = len(tokens) * share / sum(shares)
            assert float(found[t]) == pytest.approx(want, rel=1e-12)
    assert float(found[3]) == 0
    x["weights"] *= 1e5  # no overflow
    assert torch.isfinite(made_weights(DPO(token_weights="full_step_dpo"), x)).all()


@pytest.mark.parametrize("tokens", [4, 40, 400])
def test_full_step_dpo_of_means_has_the_released_codes_gradient(tokens: int) -> None:
    """StepRunners.py of Full-Step-DPO where policy and reference are one: by log π of a token
    ∓σ(0)·σ(0)·n·softmax(±γ·v) / n. Ours has β where that has the second σ(0).
    """
    draw, beta, gamma = torch.Generator().manual_seed(tokens), 0.05, 0.5
    rewards = torch.rand(2 * tokens, generator=draw, dtype=torch.float64) + 0.1
    rewards[3] = 0  # is left out
    logp = -torch.rand(2 * tokens, generator=draw, dtype=torch.float64)
    logp.requires_grad_()
    segments = (torch.arange(2 * tokens) >= tokens).long()
    made = DPO(beta=beta, token_weights="full_step_dpo", length_normalized=True)
    made(TokenStats(logp=logp, ref_logp=logp.detach()), segments, rewards).loss.backward()
    released = []
    for side, v in zip((1, -1), rewards.chunk(2), strict=True):
        masked = [float(x) * gamma * side - 999.0 * float(x == 0) for x in v]
        total, n = sum(math.exp(x) for x in masked), sum(float(x != 0) for x in v)
        released += [-side * 0.5 * 0.5 * n * math.exp(x) / total / n for x in masked]
    expected = torch.tensor(released, dtype=torch.float64) * beta / 0.5
    torch.testing.assert_close(logp.grad, expected, rtol=1e-10, atol=1e-300)


def test_step_rewards_average_one_in_each_response() -> None:
    x = sample(True)
    found = made_weights(DPO(token_weights="step_rewards"), x) * x["weights"]
    for segment in range(4):
        own = x["weights"][tokens_of(segment)]
        torch.testing.assert_close(found[tokens_of(segment)], own / own.mean())


def test_wpo_is_the_pairs_likelihood_next_to_what_the_policy_samples() -> None:
    x = sample(False)
    q = quantities(x)
    ours = fused_preference_loss(objective=DPO(pair_weights="wpo"), **x).loss
    expected: Any = 0.0
    for pair in (0, 1):
        factor = 1.0
        for side in (2 * pair, 2 * pair + 1):
            surplus = [float(q["logp"][t] - q["log_sum_sq"][t]) for t in tokens_of(side)]
            factor *= math.exp(sum(surplus) / len(surplus))
        loss = fused_preference_loss(objective=DPO(), num_pairs=2, **alone(x, pair)).loss
        expected = expected + factor * loss
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_every_shipped_name_is_a_function_that_runs() -> None:
    for option, names in SHIPPED.items():
        for name in names:
            found = fused_preference_loss(objective=DPO(**{option: name}), **sample(True))
            assert torch.isfinite(found.loss), name


def test_token_stats_tell_what_hooks_read() -> None:
    """The oracle above against the kernels' own quantities."""
    x = sample(True)
    stats = token_stats(
        *(x["hidden"], x["weight"], x["targets"]), outputs=("logp", "entropy", "log_sum_sq")
    )
    for name in ("logp", "entropy", "log_sum_sq"):
        torch.testing.assert_close(getattr(stats, name).detach(), quantities(x)[name])
