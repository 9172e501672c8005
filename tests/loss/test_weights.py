"""`token_weights` and `pair_weights`: what functions are given, and what they may return."""

import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit import DPO, ORPO, TDPO, ConfigError, SimPO, fused_preference_loss
from prefkit.loss.objective import Objective
from prefkit.loss.sides import Sides
from prefkit.loss.weights.of_tokens import ld_dpo, tis_dpo
from tests.loss.test_objectives import SEGMENTS, sample

SCORED = [t for t, s in enumerate(SEGMENTS) if s >= 0]
WAYS = [(how, False) for how in ("auto", "keep_dz", "two_pass")]
WAYS += [(how, True) for how in ("auto", "one_pass")]


def by_logp(logp: Tensor, weights: Tensor) -> Tensor:
    return logp.exp() + weights


def by_entropy(entropy: Tensor, segments: Tensor, power: float = 2.0) -> Tensor:
    return torch.where(segments % 2 == 0, entropy**power, 1.0)


def pairs_by_length(sides: Any) -> Tensor:
    return 1 / sides.totals.sum(1)


def quantities(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per token, straight from whole logits."""
    policy, reference = (
        (x[f"{of}hidden"] @ x[f"{of}weight"].T).log_softmax(-1).detach() for of in ("", "ref_")
    )
    pick = x["targets"][:, None]
    return {
        "logp": policy.gather(1, pick)[:, 0],
        "ref_logp": reference.gather(1, pick)[:, 0],
        "entropy": -(policy.exp() * policy).sum(1),
        "log_sum_sq": (2 * policy).exp().sum(1).log(),
    }


def tokens_of(segment: int) -> list[int]:
    return [t for t in SCORED if SEGMENTS[t] == segment]


def alone(x: dict[str, Tensor], pair: int) -> dict[str, Tensor]:
    """The sample with one of its pairs."""
    return {**x, "segments": torch.where(x["segments"] // 2 == pair, x["segments"], -1)}


def weight_of(x: dict[str, Tensor], pair: int) -> Tensor:
    return x["weights"][tokens_of(2 * pair) + tokens_of(2 * pair + 1)].sum()


# -- what a hook does -----------------------------------------------------------------------------


@pytest.mark.parametrize(("passes", "frozen"), WAYS)
@pytest.mark.parametrize("hook", [by_logp, by_entropy])
@pytest.mark.parametrize("kind", [DPO, SimPO])
def test_its_weights_multiply_those_of_the_rows(
    kind: Callable[..., Objective], hook: Callable[..., Tensor], passes: str, frozen: bool
) -> None:
    """The same as weights that were known before, gradients included."""
    ours, given = sample(True), sample(True)
    for x in (ours, given):
        x["weight"].requires_grad_(not frozen)
    found = fused_preference_loss(objective=kind(token_weights=hook), passes=passes, **ours)
    q = {**quantities(given), "weights": given["weights"], "segments": given["segments"]}
    made = by_logp(q["logp"], q["weights"])
    if hook is by_entropy:
        made = by_entropy(q["entropy"], q["segments"])
    given["weights"] = given["weights"] * made
    expected = fused_preference_loss(objective=kind(), passes="two_pass", **given)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    found.metrics.pop("entropy", None)  # what a function reads of the tokens is logged, too
    torch.testing.assert_close(found.metrics, expected.metrics)
    found.loss.backward()
    expected.loss.backward()
    assert (ours["hidden"].grad - given["hidden"].grad).abs().max() < 1e-12
    if not frozen:
        assert (ours["weight"].grad - given["weight"].grad).abs().max() < 1e-12


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_tdpo_has_both(variant: Any) -> None:
    """Its KL is weighed as its log-ratios are, and may be read."""

    def small_kl(kl: Tensor, ref_logp: Tensor) -> Tensor:
        return torch.exp(-kl) * (ref_logp < 0)

    ours, given = sample(True), sample(True)
    made = TDPO(variant=variant, token_weights=small_kl, pair_weights=pairs_by_length)
    found = fused_preference_loss(objective=made, **ours)
    plain = TDPO(variant=variant, pair_weights=pairs_by_length)
    kl = fused_preference_loss(objective=plain, **given).stats.kl
    factors = [1 / weight_of(given, pair) for pair in (0, 1)]
    given["weights"] = given["weights"] * torch.exp(-kl)
    expected: Any = 0.0
    for pair, factor in enumerate(factors):
        options = {"objective": TDPO(variant=variant), "num_pairs": 2}
        expected = expected + factor * fused_preference_loss(**options, **alone(given, pair)).loss
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("passes", "frozen"), WAYS)
@pytest.mark.parametrize("one", [DPO(), DPO(loss_type="bco_pair"), DPO(nll_weight=0.5)])
def test_weights_of_pairs_multiply_their_losses(one: DPO, passes: str, frozen: bool) -> None:
    made = DPO(loss_type=one.loss_type, nll_weight=one.nll_weight, pair_weights=pairs_by_length)
    ours, given = sample(True), sample(True)
    for x in (ours, given):
        x["weight"].requires_grad_(not frozen)
    found = fused_preference_loss(objective=made, passes=passes, **ours)
    expected: Any = 0.0
    for pair in (0, 1):
        options = {"objective": one, "num_pairs": 2, "passes": "two_pass"}
        loss = fused_preference_loss(**options, **alone(given, pair)).loss
        expected = expected + loss / weight_of(given, pair)
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    found.loss.backward()
    expected.backward()
    assert (ours["hidden"].grad - given["hidden"].grad).abs().max() < 1e-12


def test_weights_of_pairs_leave_a_score_to_each_pair() -> None:
    """They are read when the pass has ended: a trainable head still takes one pair a call."""
    assert DPO(use_weighting=True).linear is not None
    assert DPO(token_weights="confpo").linear is None
    x = sample(True)
    x["segments"] = torch.where(x["segments"] < 2, x["segments"], -1)
    losses = [
        fused_preference_loss(objective=DPO(use_weighting=True), passes=passes, **x).loss
        for passes in ("one_pass", "two_pass")
    ]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="not known before, so each token is a score"):
        fused_preference_loss(objective=DPO(token_weights="confpo"), passes="one_pass", **x)


def test_only_what_it_names_is_computed_and_given() -> None:
    seen: dict[str, Any] = {}

    def watch(logp: Tensor, segments: Tensor, entropy: Any = None, power: float = 3.0) -> Tensor:
        seen.update(logp=logp, segments=segments, entropy=entropy, power=power)
        return torch.ones_like(logp)

    made = DPO(token_weights=watch)
    assert made.outputs == ("logp", "ref_logp", "entropy")
    assert DPO(token_weights=by_logp).outputs == ("logp", "ref_logp")
    assert TDPO(pair_weights="wpo").outputs == ("logp", "ref_logp", "kl", "log_sum_sq")
    x = sample(True)
    fused_preference_loss(objective=made, **x)
    assert not seen["logp"].requires_grad
    assert seen["power"] == 3.0
    torch.testing.assert_close(seen["entropy"][SCORED], quantities(x)["entropy"][SCORED])


def test_entries_of_a_table_are_weighed_each_by_itself() -> None:
    """A token that serves several sides has a weight in each."""

    def by_side(segments: Tensor, logp: Tensor) -> Tensor:
        return 1.0 + segments.clamp(min=0) / 4 - logp

    x = sample(True)
    entries = torch.tensor([*SCORED, 2, 11])
    segments = torch.cat([x["segments"][SCORED], torch.tensor([3, 1])])
    tree = {**x, "segments": segments, "weights": x["weights"][entries]}
    made = DPO(token_weights=by_side)
    found = fused_preference_loss(objective=made, token_index=entries, **tree)
    flat = {k: x[k][entries] for k in ("hidden", "targets", "ref_hidden")}
    expected = fused_preference_loss(objective=made, **{**tree, **flat})
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)


def exp_in_place(logp: Tensor) -> Tensor:
    return logp.exp_()


def sides_in_place(sides: Sides) -> Tensor:
    for own in (sides.weights, sides.totals, sides.tokens, sides.present, sides.bucket):
        own.mul_(0)
    return sides.weights + 0.5


def weights_in_place(weights: Tensor, segments: Tensor) -> Tensor:
    segments.fill_(0)
    return weights.fill_(0.25)


@pytest.mark.parametrize(
    ("in_place", "same"),
    [
        (exp_in_place, lambda logp: logp.exp()),
        (sides_in_place, lambda logp: torch.full_like(logp, 0.5)),
        (weights_in_place, lambda logp: torch.full_like(logp, 0.25)),
    ],
)
@pytest.mark.parametrize("kind", [DPO, SimPO, ORPO])
def test_a_hook_may_work_in_place(
    kind: Callable[..., Objective], in_place: Any, same: Callable[..., Tensor]
) -> None:
    found, expected = (
        fused_preference_loss(objective=kind(token_weights=hook), **sample(True))
        for hook in (in_place, same)
    )
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.metrics, expected.metrics, rtol=1e-12, atol=0)


def test_what_is_said_of_a_token_that_does_not_count_is_not_looked_at() -> None:
    x = sample(True)
    x["weights"][[3, 13]] = 0.0

    def inverse(weights: Tensor) -> Tensor:
        return 1 / weights  # infinite where the weight is 0, and outside of all sides

    found = fused_preference_loss(objective=DPO(token_weights=inverse), **x)
    x["weights"] = (x["weights"] > 0).double()
    expected = fused_preference_loss(objective=DPO(), **x)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    found.loss.backward()
    assert x["hidden"].grad is not None
    assert torch.isfinite(x["hidden"].grad).all()


def test_what_is_said_of_a_pair_that_is_not_there_is_not_looked_at() -> None:
    x = sample(True)
    x["segments"] = torch.where(x["segments"] < 2, -1, x["segments"])
    by_length = DPO(pair_weights=pairs_by_length)  # 1 / 0 of pair 0
    found = fused_preference_loss(objective=by_length, **x).loss
    plain = fused_preference_loss(objective=DPO(), **x).loss
    torch.testing.assert_close(found, plain / weight_of(x, 1), rtol=1e-12, atol=0)


def test_a_weight_of_zero_everywhere_leaves_the_pair_in_the_mean() -> None:
    """Whether a pair exists is a matter of the rows, not of what a function says of them."""
    silent = DPO(token_weights=lambda logp: torch.zeros_like(logp))
    found = fused_preference_loss(objective=silent, **sample(True))
    assert float(found.loss) == pytest.approx(math.log(2))


# -- what a hook may be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "hook", "message"),
    [
        (
            "token_weights",
            "confp",
            r"token_weights is 'confp'; it must be one of confpo, .*or pack",
        ),
        ("pair_weights", "confpo", "one of wpo, or package.module:function"),
        ("token_weights", "os:no_such", "cannot be imported"),
        ("token_weights", "no_such_module:f", "cannot be imported.*must be on PYTHONPATH"),
        ("token_weights", 3, "token_weights is 3; it must be a name, module:function, or a func"),
        ("token_weights", "ld_dpo(alpa=0.3)", "ld_dpo has no parameter 'alpa'; it has alpha"),
        ("token_weights", "confpo(logp=1)", "confpo has no parameter 'logp'; it has none"),
        ("token_weights", "ld_dp(alpha=0.3)", "'ld_dp'; it must be one of ld_dpo"),
        ("token_weights", "ld_dpo(0.3)", r"by name, as in ld_dpo\(alpha=0.3\)"),
        ("token_weights", "ld_dpo(alpha=0.3", "by name"),
        ("token_weights", "ld_dpo(alpha=0.3, alpha=0.4)", "by name"),
        ("token_weights", "ld_dpo(alpha=exit())", "by name"),
        ("token_weights", "ld_dpo()", "by name"),
        ("token_weights", "ld_dpo(alpha=1).x(alpha=2)", "by name"),
        ("token_weights", "ld_dpo(alpha='x')", "alpha is 'x'; it must be a number"),
        ("token_weights", "os:sep", "not a function"),
        ("token_weights", lambda logits: logits, "asks for 'logits'.*may name logp, ref_logp"),
        ("token_weights", lambda logp, /: logp, "asks for 'logp', which it is not given"),
        ("token_weights", lambda kl: kl, "reads kl: this loss has no KL; tdpo1"),
    ],
)
def test_a_function_that_cannot_serve_is_refused_when_it_is_named(
    option: str, hook: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        DPO(**{option: hook})


def with_power(logp: Tensor, power: float, base: str = "p") -> Tensor:
    assert base == "(q)"
    return (power * logp).exp()


def test_parameters_stand_in_parentheses() -> None:
    x = sample(True)
    for named, function in (
        ("ld_dpo(alpha=0.3)", partial(ld_dpo, alpha=0.3)),
        ("tis_dpo(mu=0.5, low=-1, high=1.0)", partial(tis_dpo, mu=0.5, low=-1, high=1.0)),
        (f"{__name__}:with_power(power=2.0, base='(q)')", lambda logp: (2.0 * logp).exp()),
    ):
        made = DPO(token_weights=named)
        assert pickle.loads(pickle.dumps(made)) == made
        found = fused_preference_loss(objective=made, **x).loss
        expected = fused_preference_loss(objective=DPO(token_weights=function), **x).loss
        assert torch.equal(found, expected), named


def test_a_quantity_that_is_not_there_may_have_a_default() -> None:
    with pytest.raises(ConfigError, match="reads ref_logp: this loss has no reference"):
        SimPO(token_weights="tis_dpo")

    def either(logp: Tensor, ref_logp: Tensor | None = None) -> Tensor:
        assert ref_logp is None
        return torch.ones_like(logp)

    x = sample(True)
    del x["ref_hidden"], x["ref_weight"]
    found = fused_preference_loss(objective=SimPO(token_weights=either), **x)
    plain = fused_preference_loss(objective=SimPO(), **x)
    torch.testing.assert_close(found.loss, plain.loss)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (lambda logp: 1.0, "returned a float; it must return a tensor"),
        (lambda logp: logp[:3], r"returned the shape \(3,\); it must be \(19,\)"),
        (lambda logp: logp.requires_grad_(), "weights that require a gradient"),
        (
            lambda logp: logp * 0 - 0.5,
            "negative or not finite, such as -0.5 at 2, a token of the chosen side of pair 0",
        ),
        (
            lambda segments: 1 - (segments == 3) / 0.0,
            "negative or not finite, such as nan at 2, a token of the chosen side of pair 0",
        ),
        (
            lambda segments: torch.where(segments == 3, -torch.inf, 1.0),
            "such as -inf at 13, a token of the rejected side of pair 1",
        ),
    ],
)
def test_what_it_may_not_return_is_one_clear_error(hook: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"token_weights <lambda> returned.*{message[8:]}"):
        fused_preference_loss(objective=DPO(token_weights=hook), **sample(True))
    with pytest.raises(ConfigError, match=r"pair_weights <lambda> returned the shape \(19,\)"):
        fused_preference_loss(objective=DPO(pair_weights=lambda logp: -logp), **sample(True))
    infinite = DPO(pair_weights=lambda sides: torch.tensor([1.0, -torch.inf]))
    with pytest.raises(ConfigError, match="not finite, such as -inf at pair 1"):
        fused_preference_loss(objective=infinite, **sample(True))


def test_an_objective_with_hooks_is_a_value() -> None:
    made = DPO(token_weights="confpo", pair_weights="wpo")
    assert (
        pickle.loads(pickle.dumps(made)) == made == DPO(token_weights="confpo", use_weighting=True)
    )
    assert hash(DPO(token_weights=by_logp)) == hash(DPO(token_weights=by_logp))
    assert made.changed() == {"beta": 0.1, "token_weights": "confpo", "pair_weights": "wpo"}


def test_hooks_compile() -> None:
    made = DPO(token_weights="confpo", pair_weights="wpo")

    def loss(x: dict[str, Tensor]) -> Tensor:
        heads = (x["hidden"] * 1, x["weight"], x["targets"], x["segments"], made)
        given = {k: x[k] for k in ("weights", "ref_hidden", "ref_weight")}
        options = {"pairs_in_call": 2, "num_scored": len(SCORED), "passes": "keep_dz"}
        return fused_preference_loss(*heads, **given, **options).loss

    eager, compiled = sample(True), sample(True)
    loss(eager).backward()
    torch._dynamo.reset()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled).backward()
    torch.testing.assert_close(compiled["hidden"].grad, eager["hidden"].grad)
