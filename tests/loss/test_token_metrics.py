"""Means over tokens against plain logits, whatever the passes, the layout or the weights."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import DPO, TDPO, SimPO, fused_preference_loss
from prefkit.loss.token_metrics import token_metric_names
from tests.loss.test_objectives import sample

OBJECTIVES = {"dpo": DPO(beta=0.3), "tdpo2": TDPO(beta=0.3), "nll": DPO(nll_weight=0.5)}
NAMES = token_metric_names(log_entropy=True)


def by_definition(x: dict[str, Tensor], softcap: float | None = None) -> dict[str, float]:
    """Token by token, from whole logits."""
    logits = x["hidden"].detach() @ x["weight"].detach().T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for t, segment in enumerate(x["segments"].tolist()):
        if segment < 0 or x["weights"][t] == 0:
            continue
        row = logits[t]
        side = "rejected" if segment % 2 else "chosen"
        found[f"logits/{side}"].append(float(row.mean()))
        found["entropy"].append(float(torch.distributions.Categorical(logits=row).entropy()))
        if side == "chosen":
            found["mean_token_accuracy"].append(float(row.argmax() == x["targets"][t]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def case() -> dict[str, Tensor]:
    """The sample, with tokens of weight 0 and two chosen tokens that are the likeliest."""
    x = sample(True)
    x["weights"][[3, 13]] = 0
    best = (x["hidden"] @ x["weight"].T).argmax(1)
    x["targets"][[2, 11]] = best[[2, 11]]
    return x


@pytest.mark.parametrize("passes", ["keep_dz", "two_pass", "frozen"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_the_definition(name: str, passes: str) -> None:
    x, options = case(), {}
    if passes == "frozen":
        x["weight"] = x["weight"].detach()
    elif name == "nll":
        options["passes"] = "two_pass"
    else:
        options["passes"] = passes
    out = fused_preference_loss(objective=OBJECTIVES[name], log_entropy=True, **x, **options)
    for metric, value in by_definition(x).items():
        assert float(out.metrics[metric]) == pytest.approx(value, rel=1e-12), metric
        assert not out.metrics[metric].requires_grad
    assert out.tokens.tolist() == [5, 6]


def test_a_softcap_is_part_of_the_logits() -> None:
    x = case()
    out = fused_preference_loss(objective=SimPO(), softcap=2.0, log_entropy=True, **x)
    for metric, value in by_definition(x, softcap=2.0).items():
        assert float(out.metrics[metric]) == pytest.approx(value, rel=1e-12), metric


@pytest.mark.parametrize("passes", ["keep_dz", "two_pass"])
@pytest.mark.parametrize("name", ["dpo", "tdpo2"])
def test_the_entropy_is_not_made_unasked_and_changes_nothing(name: str, passes: str) -> None:
    found = []
    for log_entropy in (False, True):
        x = case()
        out = fused_preference_loss(
            objective=OBJECTIVES[name], passes=passes, log_entropy=log_entropy, **x
        )
        out.loss.backward()
        assert (out.stats.entropy is not None) == log_entropy == ("entropy" in out.metrics)
        found.append([out.loss.detach(), x["hidden"].grad, x["weight"].grad])
    for without, with_entropy in zip(*found, strict=True):
        torch.testing.assert_close(with_entropy, without, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_token_of_several_sides_counts_for_each(frozen: bool) -> None:
    """In a tree a token is computed once; TRL would have it in as many rows."""
    x = case()
    x["weight"].requires_grad_(not frozen)
    index = torch.tensor([2, 3, 11, 7, 8, 2, 11, 12, 13])
    segments = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3])
    shared: dict[str, Any] = {
        **x,
        "segments": segments,
        "weights": torch.tensor([1.0, 0.0, 0.5, 1, 2, 1, 1, 1, 1]).double(),
        "token_index": index,
        "one_sided": True,
        "log_entropy": True,
    }
    flat = {**x, "segments": segments, "weights": shared["weights"]}
    for name in ("hidden", "targets", "ref_hidden"):
        flat[name] = x[name].detach()[index]
    for objective in (DPO(beta=0.3), TDPO(beta=0.3)):
        out = fused_preference_loss(objective=objective, **shared)
        for metric, value in by_definition(flat).items():
            assert float(out.metrics[metric]) == pytest.approx(value, rel=1e-12), metric
        assert out.tokens.tolist() == [4, 4]


def test_a_side_without_tokens_has_zeros() -> None:
    x = case()
    x["segments"] = torch.where(x["segments"] % 2 == 0, x["segments"], -1)
    metrics = fused_preference_loss(objective=DPO(loss_type="bco_pair"), **x).metrics
    assert metrics["logits/rejected"] == 0
    assert torch.isfinite(torch.stack(list(metrics.values()))).all()


def test_it_compiles_without_a_graph_break() -> None:
    def metrics(x: dict[str, Tensor]) -> dict[str, Tensor]:
        return fused_preference_loss(
            objective=DPO(beta=0.3), pairs_in_call=2, num_scored=11, log_entropy=True, **x
        ).metrics

    x = {name: v.float() if v.is_floating_point() else v for name, v in case().items()}
    x = {name: v.detach() for name, v in x.items()}
    found = torch.compile(metrics, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, metrics(x))
