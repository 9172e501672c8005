"""Every `loss_type` and what changes it, against its written formula in fp64, in every pass.

The formulas go pair by pair over sums that a Python loop makes of whole logits
(`tests.loss.test_objectives.Direct`); they share no line with the project.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from prefkit import DPO, DPOP, ConfigError, fused_preference_loss
from prefkit.loss.loss_types import LOSS_TYPES
from tests.loss.test_objectives import SEGMENTS, Direct, mean, sample

BETA, EPS, TAU = 0.3, 0.1, 0.05


def nls(u: Tensor) -> Tensor:
    """−log σ(u)."""
    return softplus(-u)


def sg(u: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-u))


def smooth(u: Tensor) -> Tensor:
    return (1 - EPS) * nls(u) + EPS * nls(-u)


def exo(u: Tensor) -> Tensor:
    q = torch.stack([sg(u), 1 - sg(u)])
    return (q * (q.log() - torch.tensor([1 - EPS, EPS], dtype=q.dtype).log())).sum()


# Of the rewards a, b (f of S, times β below) and of their means over tokens, am and bm.
OF_MARGIN: dict[str, Callable[..., Tensor]] = {
    "sigmoid": lambda a, b, am, bm: smooth(BETA * (a - b)),
    "robust": lambda a, b, am, bm: (
        ((1 - EPS) * nls(BETA * (a - b)) - EPS * nls(BETA * (b - a))) / (1 - 2 * EPS)
    ),
    "hinge": lambda a, b, am, bm: torch.relu(1 - BETA * (a - b)),
    "ipo": lambda a, b, am, bm: (am - bm - 1 / (2 * BETA)) ** 2,
    "exo_pair": lambda a, b, am, bm: exo(BETA * (a - b)),
    "discopop": lambda a, b, am, bm: (
        (1 - sg(BETA * (a - b) / TAU)) * nls(BETA * (a - b))
        + sg(BETA * (a - b) / TAU) * torch.exp(-BETA * (a - b))
    ),
    "sigmoid_norm": lambda a, b, am, bm: smooth(BETA * (am - bm)),
}
OF_REWARDS: dict[str, Callable[..., Tensor]] = {
    "nca_pair": lambda a, b, am, bm: nls(BETA * a) + 0.5 * nls(-BETA * a) + 0.5 * nls(-BETA * b),
    "bco_pair": lambda a, b, am, bm: nls(BETA * a) + nls(-BETA * b),
    "sppo_hard": lambda a, b, am, bm: (a - 0.5 / BETA) ** 2 + (b + 0.5 / BETA) ** 2,
    "apo_zero": lambda a, b, am, bm: 1 - sg(BETA * a) + sg(BETA * b),
    "apo_down": lambda a, b, am, bm: sg(BETA * a) + 1 - sg(BETA * (a - b)),
}
DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda s: s,
    "forward_kl": lambda s: 1 - 1 / torch.exp(s),
    "js_divergence": lambda s: torch.log(2 * torch.exp(s) / (1 + torch.exp(s))),
    "alpha_divergence": lambda s: (torch.exp(s) ** (0.7 - 1) - 1) / (0.7 - 1),
}
PAIRS = [0, 1]


class Side(Direct):
    """And Σ_v p(v)² of each token."""

    def __init__(self, x: dict[str, Tensor], segment: int) -> None:
        super().__init__(x, segment)
        here = (x["segments"] == segment).nonzero().squeeze(1)
        p = (x["hidden"][here] @ x["weight"].T).softmax(-1).detach()
        self.likely = torch.exp(mean(self.lp.detach() - (p**2).sum(1).log(), self.w))


def pairs_of(x: dict[str, Tensor]) -> list[tuple[Side, Side]]:
    return [(Side(x, 2 * i), Side(x, 2 * i + 1)) for i in PAIRS]


def summed(side: Side, other: Side, values: Tensor, ld: float) -> Tensor:
    """Σ w·values, in which the tokens beyond the other side's length weigh ld."""
    total = torch.zeros((), dtype=torch.float64)
    for place, (w, value) in enumerate(zip(side.w, values, strict=True)):
        total = total + (ld if place >= len(other.w) else 1.0) * w * value
    return total


def defined(
    x: dict[str, Tensor], name: str, divergence: str = "reverse_kl", ld: float = 1.0,
    wpo: bool = False,
) -> Tensor:  # fmt: skip
    """The loss of the sample, by its formula."""
    sides = pairs_of(x)
    if name == "sft":
        chosen = [c for c, _ in sides]
        total = sum((c.w * c.lp).sum() for c in chosen)
        return -total / sum(c.w.sum() for c in chosen)
    if name == "aot":
        gap = [summed(c, d, c.lp, ld) - summed(d, c, d.lp, ld) for c, d in sides]
        ref_gap = [summed(c, d, c.lp - c.r, ld) - summed(d, c, d.lp - d.r, ld) for c, d in sides]
        matched = zip(sorted(gap, key=float), sorted(ref_gap, key=float), strict=True)
        return torch.stack([smooth(BETA * (a - b)) for a, b in matched]).mean()
    if name == "aot_unpaired":
        high = sorted((summed(c, d, c.r, ld) for c, d in sides), key=float)
        low = sorted((summed(d, c, d.r, ld) for c, d in sides), key=float)
        matched = zip(high, low, strict=True)
        return torch.stack([smooth(BETA * (a - b)) for a, b in matched]).mean()
    losses = []
    for c, d in sides:
        f = DIVERGENCES[divergence]
        a, b = f(summed(c, d, c.r, ld)), f(summed(d, c, d.r, ld))
        loss = {**OF_MARGIN, **OF_REWARDS}[name](a, b, a / c.w.sum(), b / d.w.sum())
        losses.append(loss * (c.likely * d.likely if wpo else 1.0))
    return torch.stack(losses).mean()


def objective(name: str, **options: Any) -> DPO:
    options = {"loss_type": name, "beta": BETA, **options}
    if LOSS_TYPES[name].smoothing:
        options["label_smoothing"] = EPS
    if options.get("f_divergence_type") == "alpha_divergence":
        options["f_alpha_divergence_coef"] = 0.7
    return DPO(**options)


EVERY = [name for name in LOSS_TYPES if name != "plackett_luce"]
CASES: dict[str, tuple[DPO, dict[str, Any]]] = {
    **{name: (objective(name), {"name": name}) for name in EVERY},
    **{
        f"{name}, LD": (objective(name, ld_alpha=0.4), {"name": name, "ld": 0.4})
        for name in EVERY
        if name != "sft"
    },
    **{
        f"{name}, WPO": (objective(name, use_weighting=True), {"name": name, "wpo": True})
        for name in (*OF_MARGIN, *OF_REWARDS)
    },
    **{
        f"{name}, {f}": (
            objective(name, f_divergence_type=f), {"name": name, "divergence": f}
        )
        for name in OF_MARGIN
        for f in DIVERGENCES
        if f != "reverse_kl"
    },
}  # fmt: skip
# Which passes compute a case: (passes, frozen head).
WAYS = [
    ("auto", False),
    ("auto", True),
    ("keep_dz", False),
    ("two_pass", False),
    ("one_pass", True),
]


@pytest.mark.parametrize(("passes", "frozen"), WAYS)
@pytest.mark.parametrize("name", CASES)
def test_the_loss_and_its_gradients_are_the_formula(name: str, passes: str, frozen: bool) -> None:
    made, how = CASES[name]
    ours, direct = sample(True), sample(True)
    ours["weight"].requires_grad_(not frozen)
    found = fused_preference_loss(objective=made, passes=passes, **ours)
    expected = defined(direct, **how)
    assert abs(found.loss.item() - expected.item()) < 1e-10
    found.loss.backward()
    expected.backward()
    assert (ours["hidden"].grad - direct["hidden"].grad).abs().max() < 1e-10
    if not frozen:
        assert (ours["weight"].grad - direct["weight"].grad).abs().max() < 1e-10


@pytest.mark.parametrize(("passes", "frozen"), WAYS)
def test_several_losses_are_their_weighted_sum(passes: str, frozen: bool) -> None:
    """TRL's way of MPO (2411.10442): a preference, a quality and a generation loss."""
    names, weights = ["sigmoid", "bco_pair", "sft", "aot", "ipo"], [0.8, 0.2, 1.0, 0.5, 0.1]
    made = DPO(beta=BETA, loss_type=names, loss_weights=weights, label_smoothing=EPS)
    ours, direct = sample(True), sample(True)
    ours["weight"].requires_grad_(not frozen)
    found = fused_preference_loss(objective=made, passes=passes, **ours)
    expected = sum(w * defined(direct, n) for n, w in zip(names, weights, strict=True))
    assert abs(found.loss.item() - expected.item()) < 1e-10
    found.loss.backward()
    expected.backward()
    assert (ours["hidden"].grad - direct["hidden"].grad).abs().max() < 1e-10


def test_losses_of_one_margin_stay_scores_of_pairs() -> None:
    """One pair and a trainable head: the accumulator of one pass serves all of them."""
    together = DPO(beta=BETA, loss_type=["sigmoid", "hinge", "robust"], label_smoothing=EPS)
    assert together.linear is not None
    assert DPO(beta=BETA, loss_type=["sigmoid", "ipo"]).linear is None
    x = sample(True)
    x["segments"] = torch.where(x["segments"] < 2, x["segments"], -1)
    found = fused_preference_loss(objective=together, passes="one_pass", **x).loss
    parts = [
        fused_preference_loss(objective=objective(name, label_smoothing=EPS), **x).loss
        if name != "hinge"
        else fused_preference_loss(objective=objective(name), **x).loss
        for name in ("sigmoid", "hinge", "robust")
    ]
    torch.testing.assert_close(found, sum(parts), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_tokens_of_a_table_give_the_same(name: str) -> None:
    """A token that serves both sides of both pairs, as a tree has them, is computed once."""
    made, _ = CASES[name]
    x, tree = sample(True), sample(True)
    kept = [t for t, s in enumerate(SEGMENTS) if s >= 0]
    entries = torch.tensor([*kept, 2, 2, 11])  # token 2 again on three sides, token 11 on one
    more = torch.tensor([1, 3, 1])
    x = {
        **x,
        **{k: x[k][entries].detach() for k in ("hidden", "targets", "ref_hidden")},
        "segments": torch.cat([x["segments"][kept], more]),
        "weights": x["weights"][entries],
    }
    x["hidden"].requires_grad_()
    wide = fused_preference_loss(objective=made, passes="two_pass", **x)
    tree["segments"], tree["weights"] = x["segments"], x["weights"]
    for passes in ("keep_dz", "two_pass"):
        tree["hidden"].grad = None
        found = fused_preference_loss(objective=made, passes=passes, token_index=entries, **tree)
        torch.testing.assert_close(found.loss, wide.loss, rtol=1e-12, atol=0)
        found.loss.backward()
        x["hidden"].grad = None
        fused_preference_loss(objective=made, passes="two_pass", **x).loss.backward()
        gathered = torch.zeros_like(tree["hidden"]).index_add_(0, entries, x["hidden"].grad)
        assert (tree["hidden"].grad - gathered).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        *(("aot", "keep_dz"), ("sft", "keep_dz"), ("ipo, LD", "keep_dz")),
        *(("sigmoid, WPO", "two_pass"), ("exo_pair, js_divergence", "keep_dz")),
    ],
)
def test_it_compiles_without_a_graph_break(name: str, passes: str) -> None:
    made, _ = CASES[name]

    def loss(x: dict[str, Tensor]) -> Tensor:
        heads = (x["hidden"] * 1, x["weight"], x["targets"], x["segments"], made)
        given = {k: x[k] for k in ("weights", "ref_hidden", "ref_weight")}
        scored = sum(s >= 0 for s in SEGMENTS)
        return fused_preference_loss(
            *heads, passes=passes, pairs_in_call=2, num_scored=scored, **given
        ).loss

    eager, compiled = sample(True), sample(True)
    loss(eager).backward()
    torch._dynamo.reset()  # each objective is a new graph, and their number has a limit
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled).backward()
    for key in ("hidden", "weight"):
        torch.testing.assert_close(compiled[key].grad, eager[key].grad)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "sft", "bco_pair", "sigmoid, WPO"])
def test_pair_numbers_may_have_gaps(name: str) -> None:
    """A number without tokens is no pair: it is not sorted among them, nor counted."""
    made, _ = CASES[name]
    x, gaps = sample(True), sample(True)
    gaps["segments"] = torch.where(gaps["segments"] >= 2, gaps["segments"] + 8, gaps["segments"])
    one = fused_preference_loss(objective=made, **x)
    other = fused_preference_loss(objective=made, pairs_in_call=9, **gaps)
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-14, atol=0)
    one.loss.backward()
    other.loss.backward()
    torch.testing.assert_close(gaps["hidden"].grad, x["hidden"].grad)


def test_two_ways_of_writing_one_loss() -> None:
    assert DPO(link="ipo") == DPO(loss_type="ipo") == DPO(loss_type=["ipo"], link="ipo")
    assert DPO() == DPO(loss_weights=[1.0]) == DPO(loss_type="sigmoid")
    assert DPO(link="ipo").loss_type == DPO(loss_type="ipo").link == "ipo"
    assert DPO(loss_type=["ipo", "sft"]).link is None
    assert hash(DPO(loss_type=["ipo", "sft"])) == hash(DPO(loss_type=["ipo", "sft"]))
    assert DPO(use_weighting=True) == DPO(pair_weights="wpo")
    normed = DPO(length_normalized=True), DPO(loss_type="sigmoid_norm")
    losses = [fused_preference_loss(objective=one, **sample(True)).loss for one in normed]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("made", "change", "expected"),
    [
        (DPO(use_weighting=True), {"use_weighting": False}, DPO()),
        (DPO(pair_weights="wpo"), {"pair_weights": None}, DPO()),
        (DPO(), {"use_weighting": True}, DPO(pair_weights="wpo")),
        (DPO(loss_type="ipo"), {"loss_type": "hinge"}, DPO(loss_type="hinge")),
        (DPO(loss_type="ipo"), {"loss_type": None}, DPO()),
        (DPO(link="ipo"), {"link": "hinge"}, DPO(loss_type="hinge")),
        (DPO(link="ipo"), {"link": None}, DPO()),
        (DPO(), {"link": "hinge"}, DPO(loss_type="hinge")),
        (DPO(), {"loss_type": ["ipo", "sft"]}, DPO(loss_type=["ipo", "sft"])),
        (DPO(loss_type=["ipo", "sft"]), {"loss_type": "sft"}, DPO(loss_type="sft")),
        (DPO(link="ipo", use_weighting=True), {"beta": 0.1}, DPO(link="ipo", use_weighting=True)),
    ],
)
def test_replace_changes_what_was_given(made: DPO, change: dict, expected: DPO) -> None:
    """And what only repeats it follows."""
    found = replace(replace(made), **change)
    assert found == expected
    assert (found.names, found.link) == (expected.names, expected.link)
    if "use_weighting" in change:
        assert found.use_weighting is change["use_weighting"]


def test_replace_refuses_two_ways_that_disagree_as_the_first_call_does() -> None:
    with pytest.raises(ConfigError, match="two names of one option"):
        replace(DPO(loss_type="ipo"), link="hinge")


def test_large_rewards_overflow_no_divergence() -> None:
    """In fp32 exp(89) is infinite, and a gradient of 0·∞ would be NaN."""
    from prefkit.loss.divergences import divergence_score

    for name in ("forward_kl", "js_divergence", "alpha_divergence"):
        s = torch.tensor([-500.0, -1.0, 500.0], requires_grad=True)
        score = divergence_score(name, s, 0.5)
        score.sum().backward()
        assert torch.isfinite(score).all(), name
        assert torch.isfinite(s.grad).all(), name
    near = divergence_score("alpha_divergence", torch.tensor(0.8), 1 + 1e-5)
    assert float(near) == pytest.approx(0.8, rel=1e-4)
    with pytest.raises(ValueError, match="no divergence 'typo'"):
        divergence_score("typo", torch.zeros(1), 0.5)


def test_plackett_luce_beside_others_counts_a_group_once() -> None:
    x, groups = sample(True), torch.tensor([0, 0])
    made = DPO(
        beta=BETA,
        loss_type=["plackett_luce", "bco_pair", "sigmoid"],
        loss_weights=[1.0, 0.5, 2.0],
        label_smoothing=EPS,  # of sigmoid alone
    )
    found = fused_preference_loss(objective=made, groups=groups, **x)
    alone = fused_preference_loss(
        objective=DPO(beta=BETA, loss_type="plackett_luce"), groups=groups, **x
    )
    expected = alone.loss + 0.5 * defined(x, "bco_pair") + 2.0 * defined(x, "sigmoid")
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)


def test_the_penalty_of_dpop_is_of_a_margin() -> None:
    x = sample(True)
    both = DPOP(beta=BETA, penalty=2.0, loss_type=["hinge", "sft"])
    found = fused_preference_loss(objective=both, **x).loss
    losses = []
    for c, d in pairs_of(x):
        s, t = (c.w * c.r).sum(), (d.w * d.r).sum()
        losses.append(torch.relu(1 - BETA * (s - t - 2.0 * torch.relu(-s))))
    expected = torch.stack(losses).mean() + defined(x, "sft")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_length_of_means_is_that_of_all_tokens_with_ld() -> None:
    """TRL's: the sum is lighter, the divisor is not. As weights of tokens both are."""
    x = sample(False)
    option = DPO(beta=BETA, loss_type="ipo", ld_alpha=0.5)
    hook = DPO(beta=BETA, loss_type="ipo", token_weights="ld_dpo")
    losses = [float(fused_preference_loss(objective=o, **x).loss.detach()) for o in (option, hook)]
    assert not math.isclose(*losses, rel_tol=1e-3)
    sums = [DPO(beta=BETA, ld_alpha=0.5), DPO(beta=BETA, token_weights="ld_dpo")]
    losses = [float(fused_preference_loss(objective=o, **x).loss.detach()) for o in sums]
    assert math.isclose(*losses, rel_tol=1e-12)
