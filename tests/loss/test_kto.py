"""KTO against its formula in fp64: pairs, and responses that stand alone."""

import pytest
import torch
from torch import Tensor

from prefkit import DPO, KTO, ORPO, TDPO, SimPO, fused_preference_loss
from prefkit.loss.objective import Objective
from prefkit.loss.sides import Sides
from prefkit.loss.weights.of_tokens import confpo, ld_dpo
from prefkit_kernels import TokenStats
from tests.loss.test_objectives import Direct, sample

POINT = torch.tensor(0.7, dtype=torch.float64)
ALONE = {"both": (), "a desirable one alone": (3,), "an undesirable one alone": (2,)}


def without(x: dict[str, Tensor], absent: tuple[int, ...]) -> dict[str, Tensor]:
    gone = torch.isin(x["segments"], torch.tensor(absent, dtype=torch.int64))
    return {**x, "segments": torch.where(gone, -1, x["segments"])}


def formula(x: dict[str, Tensor], absent: tuple[int, ...], point: float) -> Tensor:
    """Eqs. 7 and 8, response by response: w·(1 − σ(±β(S − z0))), mean over responses."""
    losses = []
    for segment in (s for s in range(4) if s not in absent):
        side = Direct(x, segment)
        above = 0.3 * ((side.w * side.r).sum() - point)
        undesirable = segment % 2
        value = 1 - 1 / (1 + torch.exp(above if undesirable else -above))
        losses.append((0.8 if undesirable else 1.3) * value)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable head", "frozen head"])
@pytest.mark.parametrize("passes", ["auto", "two_pass"])
@pytest.mark.parametrize("point", [True, False], ids=["z0", "z0 = 0"])
@pytest.mark.parametrize("absent", ALONE.values(), ids=ALONE)
def test_loss_and_gradients_equal_the_formula(absent, point, passes, frozen) -> None:
    objective = KTO(beta=0.3, desirable_weight=1.3, undesirable_weight=0.8, reference_point=point)
    ours, direct = without(sample(True), absent), sample(True)
    ours["weight"].requires_grad_(not frozen)
    given = {"reference_point": POINT} if point else {}
    found = fused_preference_loss(objective=objective, passes=passes, **given, **ours)
    expected = formula(direct, absent, float(POINT) if point else 0.0)
    assert abs(found.loss.item() - expected.item()) < 1e-10
    found.loss.backward()
    expected.backward()
    assert (ours["hidden"].grad - direct["hidden"].grad).abs().max() < 1e-10
    if not frozen:
        assert (ours["weight"].grad - direct["weight"].grad).abs().max() < 1e-10


def test_metrics_are_means_over_the_responses_that_exist() -> None:
    x = without(sample(True), (3,))
    found = fused_preference_loss(objective=KTO(beta=0.3), reference_point=POINT, **x).metrics
    rewards = [0.3 * float((s.w * s.r).sum()) for s in (Direct(x, k) for k in (0, 1, 2))]
    assert found["rewards/chosen"].item() == pytest.approx((rewards[0] + rewards[2]) / 2)
    assert found["rewards/rejected"].item() == pytest.approx(rewards[1])
    assert found["rewards/accuracies"].item() == float(rewards[0] > rewards[1])
    assert found["kl"].item() == pytest.approx(0.7)


def test_num_pairs_counts_responses() -> None:
    x = without(sample(True), (3,))
    one = fused_preference_loss(objective=KTO(), reference_point=POINT, **x)
    window = fused_preference_loss(objective=KTO(), reference_point=POINT, num_pairs=6, **x)
    assert window.loss.item() == pytest.approx(one.loss.item() * 3 / 6)


def test_weights_of_tokens_multiply_those_of_the_rows() -> None:
    """A response stays in the mean whatever weights its tokens get."""

    def by_side(segments: Tensor, logp: Tensor) -> Tensor:
        return torch.where(segments == 2, 0, logp.exp())

    ours, given = (without(sample(True), (3,)) for _ in range(2))
    made = KTO(beta=0.3, token_weights=by_side)
    for pairs in (None, 6):
        options = {"reference_point": POINT, "num_pairs": pairs}
        found = fused_preference_loss(objective=made, **options, **ours)
        factors = by_side(given["segments"], found.stats.logp)
        sums = []
        for segment in (0, 1, 2):
            side, here = Direct(given, segment), given["segments"] == segment
            sums.append((-1 if segment % 2 else 1) * (factors[here] * side.w * side.r).sum())
        point = torch.tensor([1, -1, 1]) * POINT
        losses = torch.sigmoid(-0.3 * (torch.stack(sums) - point))
        expected = losses.sum() / (pairs or 3)
        torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    assert float(found.metrics["rewards/chosen"]) == pytest.approx(0.3 * float(sums[0]) / 2)


@pytest.mark.parametrize("absent", [2, 3])
def test_shipped_weights_do_not_need_another_response(absent: int) -> None:
    """What the other response would change is as if there were none."""
    x = without(sample(True), (absent,))
    alone = x["segments"] == 5 - absent
    logp = fused_preference_loss(objective=KTO(reference_point=False), **x).stats.logp
    sides = Sides.of(x["segments"], x["weights"], logp)
    assert (ld_dpo(sides, alpha=0.3)[alone] == 1).all()
    w, p = x["weights"][alone], logp[alone].exp()
    assert torch.equal(confpo(logp, sides)[alone] == 1, p < (w * p).sum() / w.sum())


ALONE_OR_NOT = {
    "its own": [KTO(reference_point=False), DPO(loss_type="bco_pair"), DPO(loss_type="sft")],
    "against another": [DPO(), SimPO(), ORPO(), TDPO(), DPO(ld_alpha=0.0), DPO(loss_type="aot")],
}


@pytest.mark.parametrize("absent", [2, 3])
@pytest.mark.parametrize("one", ALONE_OR_NOT["against another"], ids=str)
def test_a_loss_of_two_responses_refuses_one_alone(one: Objective, absent: int) -> None:
    x = without(sample(True), (absent,))
    message = f"pair 1 has tokens of segment {5 - absent} and none of {absent}: .*use KTO"
    with pytest.raises(ValueError, match=message):
        fused_preference_loss(objective=one, **x)
    stats = TokenStats(*[torch.zeros(19)] * len(TokenStats._fields))
    with pytest.raises(ValueError, match=message):
        one(stats, x["segments"])
    x = sample(True)
    x["weights"] = torch.where(x["segments"] == absent, 0, x["weights"])  # is there all the same
    assert torch.isfinite(fused_preference_loss(objective=one, **x).loss)


@pytest.mark.parametrize("one", ALONE_OR_NOT["its own"], ids=str)
def test_a_loss_of_single_responses_takes_one_alone(one: Objective) -> None:
    for absent in (2, 3):
        found = fused_preference_loss(objective=one, **without(sample(True), (absent,)))
        assert torch.isfinite(found.loss)


def test_lone_sides_count_as_0_where_that_is_asked_for() -> None:
    x = without(sample(True), (3,))
    found = fused_preference_loss(objective=DPO(beta=0.3), lone_sides=True, **x)
    chosen = Direct(x, 2)
    reward = 0.3 * (chosen.w * chosen.r).sum()
    assert float(found.rewards[1, 0]) == pytest.approx(float(reward))
    assert float(found.rewards[1, 1]) == 0


@pytest.mark.parametrize(
    ("objective", "point", "message"),
    [
        (KTO(), None, "needs reference_point"),
        (KTO(reference_point=False), POINT, "no effect"),
        (DPO(), POINT, "no effect"),
        (KTO(), POINT.expand(2), r"a \(\) tensor"),
    ],
)
def test_a_reference_point_that_does_not_fit_is_refused(objective, point, message) -> None:
    with pytest.raises(ValueError, match=message):
        fused_preference_loss(objective=objective, reference_point=point, **sample(False))
