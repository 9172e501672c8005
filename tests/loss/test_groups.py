"""Link plackett_luce: groups of pairs with the same chosen response, against the definition.

−log softmax of the chosen reward among the K + 1 rewards of a group (arXiv 2305.18290, appendix
A.3, eq. 20, first rank), in fp64, straight from whole logits.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefkit import DPO, fused_preference_loss
from prefkit.errors import ConfigError
from prefkit.loss.groups import Groups
from prefkit.loss.objectives import DPOP, METHODS
from prefkit_kernels import TokenStats

PLACKETT_LUCE = DPO(beta=0.3, link="plackett_luce")
# Five pairs of two groups in mixed order: 0 and 3; 1, 2 and 4, of which 2 has no token.
GROUPS = torch.tensor([2, 0, 0, 2, 0])
SEGMENTS = [-1, 0, 0, 1, 2, -1, 3, 3, 6, 6, 7, 8, 9, 9]


def sample(frozen: bool = False) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tokens, dim, vocab = len(SEGMENTS), 6, 23
    return {
        "hidden": normal(tokens, dim).requires_grad_(),
        "weight": normal(vocab, dim).requires_grad_(not frozen),
        "targets": torch.randint(0, vocab, (tokens,), generator=draw),
        "segments": torch.tensor(SEGMENTS),
        "weights": torch.rand(tokens, generator=draw, dtype=torch.float64) + 0.1,
        "ref_hidden": normal(tokens, dim),
        "ref_weight": normal(vocab, dim),
    }


def margins(x: dict[str, Tensor], beta: float = 0.3) -> dict[int, Tensor]:
    """Pair → u, from whole logits."""
    policy, reference = (
        (x[f"{of}hidden"] @ x[f"{of}weight"].T).log_softmax(-1) for of in ("", "ref_")
    )
    ratio = (policy - reference).gather(1, x["targets"][:, None]).squeeze(1) * x["weights"]
    sums = {s: ratio[x["segments"] == s].sum() for s in range(10)}
    return {i: beta * (sums[2 * i] - sums[2 * i + 1]) for i in (0, 1, 3, 4)}


def best_of(*u: Tensor) -> Tensor:
    """−log softmax of a reward of 0 among it and rewards of −u_k."""
    return -torch.stack([torch.zeros((), dtype=torch.float64), *(-one for one in u)]).log_softmax(
        0
    )[0]


def defined(x: dict[str, Tensor]) -> Tensor:
    u = margins(x)
    return (best_of(u[0], u[3]) + best_of(u[1], u[4])) / 2


@pytest.mark.parametrize(
    ("passes", "frozen"),  # a trainable head takes one pair a call in one pass
    [(p, f) for p in ("auto", "keep_dz", "two_pass") for f in (False, True)] + [("one_pass", True)],
)
def test_the_loss_and_its_gradients_are_the_definition(passes: str, frozen: bool) -> None:
    ours, direct = sample(frozen), sample(frozen)
    found = fused_preference_loss(
        objective=PLACKETT_LUCE, groups=GROUPS, passes=passes, backend="torch", **ours
    )
    expected = defined(direct)
    assert abs(found.loss.item() - expected.item()) < 1e-10
    found.loss.backward()
    expected.backward()
    assert (ours["hidden"].grad - direct["hidden"].grad).abs().max() < 1e-10
    if not frozen:
        assert (ours["weight"].grad - direct["weight"].grad).abs().max() < 1e-10
    u = torch.stack(list(margins(direct).values()))
    torch.testing.assert_close(found.metrics["rewards/margins"], u.mean().detach())  # of pairs


def test_gradients_are_finite_differences() -> None:
    x = sample()
    given = {k: x[k] for k in ("targets", "segments", "weights", "ref_hidden", "ref_weight")}

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return fused_preference_loss(
            hidden, weight, objective=PLACKETT_LUCE, groups=GROUPS, **given
        ).loss

    assert torch.autograd.gradcheck(loss, (x["hidden"], x["weight"]))


@pytest.mark.parametrize("objective", [DPO(beta=0.3, margin=0.2), DPOP(beta=0.3, nll_weight=0.5)])
def test_a_group_of_one_pair_is_sigmoid_to_the_bit(objective: DPO) -> None:
    options = {name: getattr(objective, name) for name in ("beta", "margin", "nll_weight")}
    ours, other = sample(), sample()
    alone = type(objective)(link="plackett_luce", **options)
    found = fused_preference_loss(objective=alone, groups=torch.arange(5), **ours)
    plain = fused_preference_loss(objective=objective, **other)
    assert torch.equal(found.loss, plain.loss)
    found.loss.backward()
    plain.loss.backward()
    assert torch.equal(ours["hidden"].grad, other["hidden"].grad)
    assert found.metrics == plain.metrics


def test_the_order_and_the_numbers_of_groups_do_not_matter() -> None:
    x = sample()
    found = [
        fused_preference_loss(objective=PLACKETT_LUCE, groups=numbers, **x).loss
        for numbers in (GROUPS, torch.tensor([0, 4, 4, 0, 4]))
    ]
    torch.testing.assert_close(*found, rtol=1e-14, atol=0)


def test_calls_of_a_step_add_up_by_the_number_of_its_groups() -> None:
    whole, parts = sample(), sample()
    fused_preference_loss(objective=PLACKETT_LUCE, groups=GROUPS, **whole).loss.backward()
    for pairs in ([0, 3], [1, 4]):
        here = torch.isin(parts["segments"] // 2, torch.tensor(pairs)) & (parts["segments"] >= 0)
        alone = torch.where(here, parts["segments"], -1)
        call = {**parts, "segments": alone, "groups": GROUPS[: pairs[-1] + 1]}
        fused_preference_loss(objective=PLACKETT_LUCE, num_pairs=2, **call).loss.backward()
    torch.testing.assert_close(parts["hidden"].grad, whole["hidden"].grad)


def test_the_likelihood_of_the_chosen_response_counts_once_a_group() -> None:
    x, more = sample(), DPO(beta=0.3, link="plackett_luce", nll_weight=0.7)
    with_nll = fused_preference_loss(objective=more, groups=GROUPS, **x).loss
    without = fused_preference_loss(objective=PLACKETT_LUCE, groups=GROUPS, **x).loss
    logp = (x["hidden"] @ x["weight"].T).log_softmax(-1).gather(1, x["targets"][:, None])[:, 0]
    mean = []
    for pair in (0, 1, 3, 4):
        here = x["segments"] == 2 * pair
        mean.append(-(x["weights"] * logp)[here].sum() / x["weights"][here].sum())
    expected = 0.7 * ((mean[0] + mean[2]) / 2 + (mean[1] + mean[3]) / 2) / 2
    torch.testing.assert_close(with_nll - without, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("u", [[800.0, 900.0], [-800.0, 3.0], [-900.0, -900.0], [0.0, 60.0]])
def test_large_margins_neither_overflow_nor_vanish(u: list[float]) -> None:
    margin = torch.tensor(u, requires_grad=True)
    groups = Groups(torch.zeros(2, dtype=torch.int64), torch.ones(2))
    loss = F.softplus(-groups.soft_minimum(margin))[0]
    loss.backward()
    exact = torch.tensor([0.0, *(-one for one in u)], dtype=torch.float64)
    expected = float(exact.logsumexp(0))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6, abs=math.exp(-80))
    torch.testing.assert_close(margin.grad.double(), -exact.softmax(0)[1:], rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("objective", "groups", "message"),
    [
        (PLACKETT_LUCE, None, "needs groups"),
        (DPO(), GROUPS, "groups have no effect"),
        (PLACKETT_LUCE, GROUPS[:4], r"shape \(5,\)"),
        (PLACKETT_LUCE, GROUPS.int(), "must be int64"),
        (PLACKETT_LUCE, GROUPS - 1, r"in 0\.\.4"),
        (PLACKETT_LUCE, GROUPS + 3, r"in 0\.\.4"),
    ],
)
@pytest.mark.parametrize("pairs", [None, 5])
def test_groups_that_do_not_fit_are_refused(
    objective: DPO, groups: Tensor | None, message: str, pairs: int | None
) -> None:
    with pytest.raises(ValueError, match=message):
        fused_preference_loss(objective=objective, groups=groups, pairs_in_call=pairs, **sample())


def test_an_objective_that_is_called_by_itself_says_what_it_needs() -> None:
    stats = TokenStats(logp=torch.zeros(4), ref_logp=torch.zeros(4))
    with pytest.raises(ValueError, match="needs groups"):
        PLACKETT_LUCE(stats, torch.arange(4))
    with pytest.raises(ValueError, match="reads no groups"):
        DPO()(stats, torch.arange(4), groups=torch.zeros(2, dtype=torch.int64))
    found = PLACKETT_LUCE(stats, torch.arange(4), groups=torch.zeros(2, dtype=torch.int64))
    assert float(found.loss) == pytest.approx(math.log(3))


def test_every_method_of_dpo_has_the_link_and_what_it_excludes_is_refused() -> None:
    for name in ("dpo", "step-dpo", "scdpo", "cdpo", "dpop"):
        assert METHODS[name].build({"link": "plackett_luce"}).needs_groups
    with pytest.raises(ConfigError, match="label_smoothing has no effect with link"):
        DPO(link="plackett_luce", label_smoothing=0.1)
    with pytest.raises(ConfigError, match="compares whole responses"):
        DPO(link="plackett_luce", reduction="position")
