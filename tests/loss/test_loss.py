"""`fused_preference_loss`: what it refuses, and how it trains."""

import pytest
import torch

from prefkit import DPO, TDPO, fused_preference_loss
from tests.loss.test_objectives import sample


def _call(objective: object, **change: object) -> object:
    return fused_preference_loss(objective=objective, **{**sample(True), **change})


@pytest.mark.parametrize(
    ("objective", "change", "message"),
    [
        (DPO(), {"ref_hidden": None}, "go together"),
        (DPO(), {"ref_hidden": None, "ref_weight": None}, "needs a reference"),
        (DPO(), {"ref_logp": torch.zeros(19)}, "give the reference once"),
        (
            TDPO(),
            {"ref_hidden": None, "ref_weight": None, "ref_logp": torch.zeros(19)},
            "cannot replace them",
        ),
        (DPO(), {"segments": torch.zeros(5, dtype=torch.int64)}, "segments must have the shape"),
        (DPO(), {"segments": torch.zeros(19)}, "segments must be int64"),
        (DPO(), {"weights": torch.ones(3)}, "weights must have the shape"),
        (DPO(), {"segments": torch.full((19,), -1)}, "no scored token"),
        (DPO(), {"weights": torch.zeros(19)}, "no scored token"),
        (DPO(), {"weights": -torch.ones(19)}, r"weights\[2\] = -1.0"),
        (DPO(), {"weights": torch.full((19,), torch.nan)}, r"weights\[2\] = nan"),
        (DPO(), {"targets": torch.full((19,), -100)}, r"targets\[2\] is ignore_index"),
        (DPO(), {"targets": torch.full((19,), 23)}, "outside 0..22"),
        ("dpo", {}, r"objective is 'dpo'; give an instance"),
        (DPO, {}, "give an instance such as DPO"),
        (DPO(), {"outputs": ("logp",)}, "outputs is set by the objective"),
    ],
)
def test_misuse_is_one_clear_error(objective: object, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _call(objective, **change)


def test_reference_free_objectives_ignore_a_reference() -> None:
    objective = DPO(reference_free=True)
    with_reference = _call(objective)
    without = _call(objective, ref_hidden=None, ref_weight=None)
    assert torch.equal(with_reference.loss, without.loss)


def test_gradient_steps_widen_the_margin() -> None:
    x = sample(False)
    optimizer = torch.optim.SGD([x["hidden"], x["weight"]], lr=0.5)
    margins = []
    for _ in range(5):
        out = fused_preference_loss(objective=TDPO(beta=0.3), **x)
        margins.append(float(out.metrics["rewards/margins"]))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert margins == sorted(margins)
    assert margins[-1] > margins[0] + 0.1


def test_options_reach_the_kernels() -> None:
    x = sample(False)
    plain = fused_preference_loss(objective=DPO(), **x)
    capped = fused_preference_loss(objective=DPO(), softcap=1.0, temperature=2.0, **x)
    budget = fused_preference_loss(objective=DPO(), memory_budget=1, backend="torch", **x)
    assert not torch.allclose(plain.loss, capped.loss)
    torch.testing.assert_close(plain.loss, budget.loss)
