"""Values pair by pair: their means are the metrics of the call, in trees as well."""

from typing import Any

import pytest
import torch

from prefkit import DPO, DPOP, TDPO, SimPO, fused_preference_loss
from prefkit.loss.by_pair import values_by_pair

OBJECTIVES: dict[str, Any] = {
    "dpo": DPO(beta=0.3),
    "dpop": DPOP(beta=0.3),
    "tdpo": TDPO(beta=0.3, alpha=0.5),
    "simpo": SimPO(beta=2.0),
}


def call(objective: Any, index: torch.Tensor | None) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A call on three pairs, a weight of 0 among them; and its segments and weights."""
    torch.manual_seed(0)
    tokens, entries = 16, 16 if index is None else len(index)
    hidden, ref_hidden = (torch.randn(tokens, 6, dtype=torch.float64) for _ in range(2))
    weight, ref_weight = (torch.randn(11, 6, dtype=torch.float64) for _ in range(2))
    segments, weights = torch.arange(entries) % 6, torch.rand(entries, dtype=torch.float64)
    weights[3] = 0
    reference = {"ref_hidden": ref_hidden, "ref_weight": ref_weight}
    out = fused_preference_loss(
        hidden,
        weight,
        torch.randint(11, (tokens,)),
        segments,
        objective=objective,
        weights=weights,
        token_index=index,
        **(reference if objective.needs_reference else {}),
    )
    return out, segments, weights


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("in_tree", [False, True])
def test_means_are_the_metrics(name: str, in_tree: bool) -> None:
    objective = OBJECTIVES[name]
    index = torch.arange(24) * 5 % 16 if in_tree else None
    out, segments, weights = call(objective, index)
    found = values_by_pair(objective, out.stats, segments, weights, 3, index)
    assert found.logps.shape == found.rewards.shape == (3, 2)
    assert (found.ref_logps is None) == (not objective.needs_reference)
    means = {
        **dict(zip(("logps/chosen", "logps/rejected"), found.logps.mean(0), strict=True)),
        **dict(zip(("rewards/chosen", "rewards/rejected"), found.rewards.mean(0), strict=True)),
        "rewards/margins": (found.rewards[:, 0] - found.rewards[:, 1]).mean(),
    }
    for key, value in means.items():
        torch.testing.assert_close(value, out.metrics[key], msg=key)


def test_rewards_are_beta_times_the_weighted_log_ratios() -> None:
    out, segments, weights = call(OBJECTIVES["dpo"], None)
    found = values_by_pair(OBJECTIVES["dpo"], out.stats, segments, weights, 3)
    for pair in range(3):
        for side in range(2):
            own = (segments == 2 * pair + side) & (weights != 0)
            ratio = (out.stats.logp - out.stats.ref_logp)[own]
            want = 0.3 * (weights[own] * ratio).sum()
            torch.testing.assert_close(found.rewards[pair, side], want)
            torch.testing.assert_close(found.logps[pair, side], out.stats.logp[own].sum())
