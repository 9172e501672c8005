"""Every objective against the direct formula of its paper, loss and gradients, in fp64.

The oracle goes pair by pair over whole logits with a Python loop; it shares no line with the
project. Bound: 1e-10 on the loss and on every gradient, through the torch backend.
"""

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefkit import DPO, TDPO, SimPO, fused_preference_loss
from prefkit.loss.links import link_loss
from prefkit.loss.objective import Objective
from prefkit.loss.objectives import DPOP, METHODS
from prefkit_kernels import TokenStats

# Pair 0 with a prompt before it and a masked token inside; pair 1 with sides of unequal length.
SEGMENTS = [-1, -1, 0, 0, 0, -1, 0, 1, 1, -1, -1, 2, 2, 3, 3, 3, 3, 3, -1]


def sample(weighted: bool) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tokens, dim, vocab = len(SEGMENTS), 6, 23
    return {
        "hidden": normal(tokens, dim).requires_grad_(),
        "weight": normal(vocab, dim).requires_grad_(),
        "targets": torch.randint(0, vocab, (tokens,), generator=draw),
        "segments": torch.tensor(SEGMENTS),
        "weights": torch.rand(tokens, generator=draw, dtype=torch.float64) + 0.1
        if weighted
        else torch.ones(tokens, dtype=torch.float64),
        "ref_hidden": normal(tokens, dim),
        "ref_weight": normal(vocab, dim),
    }


class Direct:
    """r, lp and KL of one side of one pair, straight from logits."""

    def __init__(self, x: dict[str, Tensor], segment: int) -> None:
        here = (x["segments"] == segment).nonzero().squeeze(1)
        policy = (x["hidden"][here] @ x["weight"].T).log_softmax(-1)
        reference = (x["ref_hidden"][here] @ x["ref_weight"].T).log_softmax(-1)
        y = x["targets"][here, None]
        self.w = x["weights"][here]
        self.lp = policy.gather(1, y).squeeze(1)
        self.r = self.lp - reference.gather(1, y).squeeze(1)
        self.kl = (reference.exp() * (reference - policy)).sum(1)


def _log_sigmoid(u: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-u))


def dpo(beta: float, e: float = 0.0) -> Callable[[Direct, Direct], Tensor]:
    def loss(c: Direct, d: Direct) -> Tensor:
        u = beta * ((c.w * c.r).sum() - (d.w * d.r).sum())
        return -(1 - e) * _log_sigmoid(u) - e * _log_sigmoid(-u)

    return loss


def robust(beta: float, e: float) -> Callable[[Direct, Direct], Tensor]:
    def loss(c: Direct, d: Direct) -> Tensor:
        u = beta * ((c.w * c.r).sum() - (d.w * d.r).sum())
        return (-(1 - e) * _log_sigmoid(u) + e * _log_sigmoid(-u)) / (1 - 2 * e)

    return loss


def mean(values: Tensor, w: Tensor) -> Tensor:
    return (w * values).sum() / w.sum()


def tdpo(beta: float, kappa: float, detach: bool) -> Callable[[Direct, Direct], Tensor]:
    def loss(c: Direct, d: Direct) -> Tensor:
        k_c, k_d = (c.w * c.kl).sum(), (d.w * d.kl).sum()
        k_c = k_c.detach() if detach else k_c
        ratio = beta * ((c.w * c.r).sum() - (d.w * d.r).sum())
        return -_log_sigmoid(ratio - kappa * (k_d - k_c))

    return loss


def by_position(beta: float, positions: int | None) -> Callable[[Direct, Direct], Tensor]:
    """cDPO as released: logsigmoid for each aligned position, mean over all of them."""

    def loss(c: Direct, d: Direct) -> Tensor:
        width = positions or max(len(c.r), len(d.r))
        chosen = F.pad(c.w * c.r, (0, width - len(c.r)))
        rejected = F.pad(d.w * d.r, (0, width - len(d.r)))
        return -_log_sigmoid(beta * (chosen - rejected)).mean()

    return loss


def dpop(beta: float, penalty: float, average: bool = False) -> Callable[[Direct, Direct], Tensor]:
    """DPO-Positive, eq. 3: the chosen side's shortfall costs λ times what its ratio gains."""

    def loss(c: Direct, d: Direct) -> Tensor:
        s_c, s_d = (mean(x.r, x.w) if average else (x.w * x.r).sum() for x in (c, d))
        return -_log_sigmoid(beta * (s_c - s_d - penalty * torch.relu(-s_c)))

    return loss


CASES: dict[str, tuple[Objective, Callable[[Direct, Direct], Tensor]]] = {
    "dpo": (DPO(beta=0.3), dpo(0.3)),
    "label smoothing": (DPO(beta=0.3, label_smoothing=0.1), dpo(0.3, 0.1)),
    "robust": (DPO(beta=0.3, link="robust", label_smoothing=0.1), robust(0.3, 0.1)),
    "hinge": (
        DPO(beta=0.3, link="hinge"),
        lambda c, d: torch.relu(1 - 0.3 * ((c.w * c.r).sum() - (d.w * d.r).sum())),
    ),
    "ipo": (
        DPO(beta=0.3, link="ipo"),
        lambda c, d: (mean(c.r, c.w) - mean(d.r, d.w) - 1 / 0.6) ** 2,
    ),
    "length-normalised": (
        DPO(beta=3.0, length_normalized=True),
        lambda c, d: -_log_sigmoid(3.0 * (mean(c.r, c.w) - mean(d.r, d.w))),
    ),
    "simpo": (
        SimPO(beta=2.0, margin=1.0),
        lambda c, d: -_log_sigmoid(2.0 * (mean(c.lp, c.w) - mean(d.lp, d.w)) - 1.0),
    ),
    "nll": (
        DPO(beta=0.3, nll_weight=0.7),
        lambda c, d: dpo(0.3)(c, d) - 0.7 * mean(c.lp, c.w),
    ),
    "dpop": (DPOP(beta=0.3, penalty=0.7), dpop(0.3, 0.7)),
    "dpop of means": (
        DPOP(beta=0.3, penalty=5.0, length_normalized=True),
        dpop(0.3, 5.0, average=True),
    ),
    "tdpo1": (TDPO(beta=0.3, variant="tdpo1"), tdpo(0.3, 0.3, detach=False)),
    "tdpo2": (TDPO(beta=0.3, alpha=0.5), tdpo(0.3, 0.15, detach=True)),
    "cdpo by position, as released": (
        DPO(beta=0.3, reduction="position", positions_per_pair=11),
        by_position(0.3, 11),
    ),
    "position": (DPO(beta=0.3, reduction="position"), by_position(0.3, None)),
}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable head", "frozen head"])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_the_direct_formula(
    name: str, frozen: bool, weighted: bool
) -> None:
    objective, formula = CASES[name]
    ours, direct = sample(weighted), sample(weighted)
    ours["weight"].requires_grad_(not frozen)
    found = fused_preference_loss(objective=objective, backend="torch", **ours)
    expected = (
        formula(Direct(direct, 0), Direct(direct, 1))
        + formula(Direct(direct, 2), Direct(direct, 3))
    ) / 2
    assert abs(found.loss.item() - expected.item()) < 1e-10
    found.loss.backward()
    expected.backward()
    assert (ours["hidden"].grad - direct["hidden"].grad).abs().max() < 1e-10
    if not frozen:
        assert (ours["weight"].grad - direct["weight"].grad).abs().max() < 1e-10


def test_dpop_is_dpo_where_the_chosen_side_is_likelier_than_under_the_reference() -> None:
    """The cases above feel the penalty; policy and reference exchanged, nothing is left of it."""
    x = sample(False)
    assert all(Direct(x, segment).r.sum() < 0 for segment in (0, 2))
    changed = {
        "hidden": x["ref_hidden"].requires_grad_(),
        "weight": x["ref_weight"].requires_grad_(),
        "ref_hidden": x["hidden"].detach(),
        "ref_weight": x["weight"].detach(),
    }
    found = fused_preference_loss(objective=DPOP(beta=0.3), **{**x, **changed})
    plain = fused_preference_loss(objective=DPO(beta=0.3), **{**x, **changed})
    assert torch.equal(found.loss, plain.loss)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable head", "frozen head"])
@pytest.mark.parametrize("passes", ["auto", "two_pass"])
def test_margins_of_rows_are_subtracted_from_each_pair(passes: str, frozen: bool) -> None:
    """Offset DPO (arXiv 2402.10571): −log σ(u_i − α·m_i)."""
    margins = torch.tensor([0.4, -1.5], dtype=torch.float64)
    ours, direct = sample(True), sample(True)
    ours["weight"].requires_grad_(not frozen)
    objective = DPO(beta=0.3, margin_weight=2.0)
    found = fused_preference_loss(objective=objective, margins=margins, passes=passes, **ours)
    pairs = [(Direct(direct, 2 * i), Direct(direct, 2 * i + 1)) for i in (0, 1)]
    losses = [
        -_log_sigmoid(0.3 * ((c.w * c.r).sum() - (d.w * d.r).sum()) - 2.0 * m)
        for (c, d), m in zip(pairs, margins, strict=True)
    ]
    expected = torch.stack(losses).mean()
    assert abs(found.loss.item() - expected.item()) < 1e-10
    found.loss.backward()
    expected.backward()
    assert (ours["hidden"].grad - direct["hidden"].grad).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("objective", "margins", "message"),
    [
        (DPO(margin_weight=1.0), None, "needs margins"),
        (DPO(), torch.zeros(2), "no effect"),
        (DPO(margin_weight=1.0), torch.zeros(3), r"shape \(2,\)"),
    ],
)
def test_margins_that_do_not_fit_are_refused(
    objective: DPO, margins: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fused_preference_loss(objective=objective, margins=margins, **sample(False))


def test_an_objective_is_a_value() -> None:
    """Checked when it is made, and never again: so it stays as it is, equal and hashed by it."""
    objective = DPO(beta=0.3)
    with pytest.raises(FrozenInstanceError, match="beta"):
        objective.beta = -1.0
    assert {objective, DPO(beta=0.3)} == {DPO(beta=0.3)}
    assert pickle.loads(pickle.dumps(objective)) == objective
    with pytest.raises(ValueError, match="no link 'typo'"):
        link_loss("typo", torch.zeros(1))


@pytest.mark.parametrize(
    "margins", [torch.zeros(3), torch.zeros(2, 1), torch.tensor([0.0, torch.nan])]
)
def test_an_objective_reads_one_finite_margin_a_pair(margins: Tensor) -> None:
    stats = TokenStats(logp=torch.zeros(4), ref_logp=torch.zeros(4))
    with pytest.raises(ValueError, match="margins must"):
        DPO(margin_weight=1.0)(stats, torch.arange(4), margins=margins)
    with pytest.raises(ValueError, match="reads no margins"):
        DPO()(stats, torch.arange(4), margins=torch.zeros(2))


def test_methods_are_their_papers() -> None:
    """What a method reads and sets, as METHODS has it; an option left out is the paper's."""
    built = {name: method.build({}) for name, method in METHODS.items()}
    betas = {"dpo": 0.1, "step-dpo": 0.4, "scdpo": 0.1, "cdpo": 1.0, "dpop": 0.3}
    assert {k: built[k].beta for k in betas} == betas
    assert built["dpop"] == DPOP(beta=0.3, penalty=50.0)
    assert built["simpo"] == SimPO()
    assert METHODS["cdpo"].build({"reduction": "position"}).beta == 0.1
    assert "alpha" not in METHODS["tdpo1"].reads
    assert METHODS["tdpo2"].reads == ("beta", "token_weights", "pair_weights", "alpha")


@pytest.mark.parametrize("name", CASES)
def test_batches_agree(name: str) -> None:
    """Two pairs at once = one after the other with num_pairs=2, gradients included."""
    objective, _ = CASES[name]
    together, apart = sample(True), sample(True)
    fused_preference_loss(objective=objective, **together).loss.backward()
    for pair in (0, 1):
        segments = apart["segments"]
        alone = torch.where(segments // 2 == pair, segments, -1)
        parts = {**apart, "segments": alone}
        fused_preference_loss(objective=objective, num_pairs=2, **parts).loss.backward()
    torch.testing.assert_close(apart["hidden"].grad, together["hidden"].grad)
    torch.testing.assert_close(apart["weight"].grad, together["weight"].grad)


@pytest.mark.parametrize("name", [name for name in CASES if "position" not in name])
def test_a_weight_of_zero_is_the_same_as_no_segment(name: str) -> None:
    objective, _ = CASES[name]
    masked, zeroed = sample(True), sample(True)
    masked["segments"] = masked["segments"].clone()
    masked["segments"][[3, 16]] = -1
    zeroed["weights"][[3, 16]] = 0.0
    one = fused_preference_loss(objective=objective, **masked)
    other = fused_preference_loss(objective=objective, **zeroed)
    assert torch.equal(one.loss, other.loss)
    assert one.metrics == other.metrics


@pytest.mark.parametrize("name", CASES)
def test_the_loss_does_not_jump_where_a_weight_reaches_zero(name: str) -> None:
    """cDPO's 1 − s is exactly 0 where s rounds to 1: the next token must not take its position."""
    objective, _ = CASES[name]
    losses = []
    for weight in (1e-9, 0.0):
        x = sample(True)
        x["weights"][[3, 14]] = weight
        losses.append(fused_preference_loss(objective=objective, **x).loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-7)


def test_pair_numbers_may_have_gaps() -> None:
    """A pair without tokens is no pair: it must not add log 2, nor count in the mean."""
    x, gaps = sample(False), sample(False)
    gaps["segments"] = torch.where(gaps["segments"] >= 2, gaps["segments"] + 8, gaps["segments"])
    one = fused_preference_loss(objective=DPO(), **x)
    other = fused_preference_loss(objective=DPO(), **gaps)
    torch.testing.assert_close(other.loss, one.loss)
    torch.testing.assert_close(other.metrics, one.metrics)


def test_cached_reference_log_probs_equal_reference_hidden_states() -> None:
    x = sample(True)
    live = fused_preference_loss(objective=DPO(), **x)
    ref_logp = live.stats.ref_logp
    without = {k: v for k, v in x.items() if not k.startswith("ref_")}
    cached = fused_preference_loss(objective=DPO(), ref_logp=ref_logp, **without)
    assert torch.equal(live.loss, cached.loss)


def test_metrics_have_trls_meaning() -> None:
    x = sample(False)
    metrics = fused_preference_loss(objective=TDPO(beta=0.3), **x).metrics
    sides = [Direct(x, s) for s in range(4)]
    reward = [0.3 * (s.r.sum() + s.kl.sum()) for s in sides]
    expected = {
        "rewards/chosen": (reward[0] + reward[2]) / 2,
        "rewards/rejected": (reward[1] + reward[3]) / 2,
        "rewards/margins": (reward[0] - reward[1] + reward[2] - reward[3]) / 2,
        "logps/chosen": (sides[0].lp.sum() + sides[2].lp.sum()) / 2,
        "logps/rejected": (sides[1].lp.sum() + sides[3].lp.sum()) / 2,
        "kl/chosen": (sides[0].kl.sum() + sides[2].kl.sum()) / 2,
        "kl/rejected": (sides[1].kl.sum() + sides[3].kl.sum()) / 2,
    }
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value.detach(), msg=name)
    right = float(reward[0] > reward[1]) + float(reward[2] > reward[3])
    assert float(metrics["rewards/accuracies"]) == right / 2
    assert all(not value.requires_grad for value in metrics.values())


def test_an_objective_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="needs 'kl'"):
        TDPO()(TokenStats(logp=torch.zeros(2), ref_logp=torch.zeros(2)), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPO(beta=0), "beta is 0; it must be a positive"),
        (lambda: DPO(beta=float("nan")), "beta is nan; it must be"),
        (lambda: DPO(link="logistic"), "link is .*; it must be one of sigmoid, robust, hinge, ipo"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing is 0.5; it must be in"),
        (
            lambda: DPO(link="hinge", label_smoothing=0.1),
            "with link 'hinge'. Use sigmoid or robust",
        ),
        (lambda: DPO(link="ipo", margin=1.0), "its own margin"),
        (lambda: DPO(reduction="position", link="ipo"), "excludes"),
        (lambda: DPO(positions_per_pair=3), "goes with reduction='position'"),
        (lambda: DPO(nll_weight=-1.0), "nll_weight is -1.0; it must be"),
        (lambda: TDPO(alpha=-0.1), "alpha is -0.1; it must be"),
        (lambda: TDPO(variant="tdpo3"), "variant is .*; it must be one of"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
