"""Values pair by pair: their means are the metrics of the call, in trees as well."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import DPO, DPOP, TDPO, SimPO, fused_preference_loss
from prefkit.loss.by_pair import sums_by_pair

OBJECTIVES: dict[str, Any] = {
    "dpo": DPO(beta=0.3),
    "ld-dpo": DPO(beta=0.3, ld_alpha=0.5),
    "dpop": DPOP(beta=0.3),
    "tdpo": TDPO(beta=0.3, alpha=0.5),
    "simpo": SimPO(beta=2.0),
}
PAIRS = 3


def call(objective: Any, index: Tensor | None) -> tuple[Any, Tensor, Tensor]:
    """A call on three pairs, a weight of 0 among them; and its segments and weights."""
    torch.manual_seed(0)
    tokens, entries = 16, 16 if index is None else len(index)
    hidden, ref_hidden = (torch.randn(tokens, 6, dtype=torch.float64) for _ in range(2))
    weight, ref_weight = (torch.randn(11, 6, dtype=torch.float64) for _ in range(2))
    segments = torch.arange(entries) % (2 * PAIRS)
    weights = torch.rand(entries, dtype=torch.float64)
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
    index = torch.arange(24) * 5 % 16 if in_tree else None
    out, segments, weights = call(OBJECTIVES[name], index)
    assert out.logps.shape == out.rewards.shape == (PAIRS, 2)
    assert not out.logps.requires_grad
    for kind, values in {"logps": out.logps, "rewards": out.rewards}.items():
        for place, side in enumerate(("chosen", "rejected")):
            torch.testing.assert_close(values[:, place].mean(), out.metrics[f"{kind}/{side}"])
    sums = sums_by_pair(out.stats.logp, segments, weights, PAIRS, index)
    torch.testing.assert_close(sums, out.logps)


def test_each_value_is_the_sum_over_its_own_tokens() -> None:
    out, segments, weights = call(OBJECTIVES["dpo"], None)
    ref_logps = sums_by_pair(out.stats.ref_logp, segments, weights, PAIRS)
    for pair in range(PAIRS):
        for side in range(2):
            own = (segments == 2 * pair + side) & (weights != 0)
            logp, ref_logp = out.stats.logp[own], out.stats.ref_logp[own]
            reward = 0.3 * (weights[own] * (logp - ref_logp)).sum()
            torch.testing.assert_close(out.rewards[pair, side], reward)
            torch.testing.assert_close(out.logps[pair, side], logp.sum())
            torch.testing.assert_close(ref_logps[pair, side], ref_logp.sum())
