"""`max_logp` and `mean_logit`: the greedy token told exactly, in the pass that is made anyway.

Which class is the likeliest is asked of fp64 logits of plain torch.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit_kernels import TokenStats, pair_scores, token_stats
from prefkit_kernels.backends import torch as torch_kernels
from prefkit_kernels.core import reference as definition
from prefkit_kernels.core.logits import LogitScaling
from prefkit_kernels.token_stats import operator
from tests.kernels.kernel_cases import Case, Problem, build, call, device_of

BACKENDS = ["torch", "triton", "reference"]
SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 1.3},
    "scale": {"logit_scale": 0.7},
    "softcap": {"softcap": 5.0},
    "all": {"temperature": 0.8, "logit_scale": 1.7, "softcap": 20.0},
}
OUTPUTS = ("logp", "max_logp", "mean_logit")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    return str(request.param)


def logits_of(problem: Problem, options: dict[str, Any]) -> Tensor:
    """(T, V) in fp64, on the CPU."""
    scaling = LogitScaling(
        options.get("logit_scale", 1.0),
        options.get("softcap", 0.0),
        options.get("temperature", 1.0),
    )
    parts = (problem.hidden, problem.weight, problem.bias)
    wide = (None if x is None else x.detach().double().cpu() for x in parts)
    return definition.logits(*wide, scaling)


def greedy_targets(problem: Problem, options: dict[str, Any]) -> Tensor:
    """(T,) bool: every other target becomes the likeliest class; skipped ones stay skipped."""
    best = logits_of(problem, options).argmax(1).to(problem.targets.device)
    every_other = torch.arange(len(best), device=best.device) % 2 == 0
    other = torch.where(problem.targets == best, (best + 1) % len(problem.weight), problem.targets)
    kept = problem.targets >= 0
    problem.targets = torch.where(kept, torch.where(every_other, best, other), problem.targets)
    return every_other & kept


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_equals_logp_to_the_bit_where_the_target_is_the_likeliest(
    backend: str, dtype: torch.dtype, scaling: str, bias: bool
) -> None:
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton computes in fp32")
    options = SCALINGS[scaling]
    case = Case(tokens=40, bias=bias, outputs=OUTPUTS, options=options, ignored=(2, 5))
    problem = build(case, dtype, device_of(backend))
    greedy = greedy_targets(problem, options)
    stats = call(problem, case, backend)
    kept = problem.targets >= 0
    assert torch.equal((stats.logp == stats.max_logp)[kept], greedy[kept])
    assert (stats.logp <= stats.max_logp).all()
    exact = logits_of(problem, options).log_softmax(1).amax(1)
    error = (stats.max_logp.double().cpu() - exact)[kept.cpu()].abs().max()
    assert error < (1e-13 if dtype == torch.float64 else 5e-6)
    for values in (stats.max_logp, stats.mean_logit):
        assert (values[~kept] == 0).all()
        assert not values.requires_grad
    if stats.logp.requires_grad:  # asking for more changes no gradient
        stats.logp.sum().backward()
        alone = build(case, dtype, device_of(backend))
        alone.targets = problem.targets
        logp = token_stats(
            *(alone.hidden, alone.weight, alone.targets, alone.bias), backend=backend, **options
        ).logp
        logp.sum().backward()
        assert torch.equal(problem.hidden.grad, alone.hidden.grad)


@pytest.mark.parametrize("passes", ["one_pass", "keep_dz"])
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_pair_scores_give_the_same(name: str, passes: str) -> None:
    if name == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    case = Case(tokens=20, outputs=OUTPUTS, ignored=(3,), options=SCALINGS["all"])
    problem = build(case, torch.float32, device_of(name))
    greedy = greedy_targets(problem, case.options)
    found = _scores(problem, name, passes, memory_budget=5000, **case.options)
    want = call(problem, case, name)
    for field in OUTPUTS:
        torch.testing.assert_close(getattr(found, field), getattr(want, field).detach())
    assert torch.equal((found.logp == found.max_logp) & (problem.targets >= 0), greedy)


def _scores(problem: Problem, backend: str, passes: str, **options: Any) -> TokenStats:
    ones = torch.ones(len(problem.targets), device=problem.targets.device)
    return pair_scores(
        *(problem.hidden, problem.weight, problem.targets, torch.zeros_like(problem.targets), 1),
        {"logp": ones},
        bias=problem.bias,
        outputs=OUTPUTS,
        backend=backend,
        passes=passes,
        **options,
    ).stats


@pytest.mark.parametrize("scaling", SCALINGS)
def test_heads_that_store_no_logits(scaling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = pytest.importorskip(
        "prefkit_kernels.backends.triton.small_head", reason="Triton is not installed"
    )
    monkeypatch.setattr(small, "worthwhile", lambda *_: True)
    taken: list[int] = []
    inner = small.normalisers
    monkeypatch.setattr(small, "normalisers", lambda *a: (taken.append(1), inner(*a)))
    options = SCALINGS[scaling]
    frozen = {"frozen_head": True, "frozen_hidden": True}
    case = Case(tokens=40, outputs=OUTPUTS, options=options, **frozen)
    problem = build(case, torch.bfloat16, device_of("triton"))
    greedy = greedy_targets(problem, options)
    stats = call(problem, case, "triton")
    assert taken
    assert torch.equal((stats.logp == stats.max_logp) & (problem.targets >= 0), greedy)
    mean = logits_of(problem, options).mean(1)
    kept = (problem.targets >= 0).cpu()
    torch.testing.assert_close(stats.mean_logit.double().cpu()[kept], mean[kept], rtol=0, atol=1e-5)


def test_the_mean_is_that_of_the_logits(backend: str) -> None:
    """After scale, softcap and temperature; masked classes make it −inf, as the definition does."""
    options = SCALINGS["all"]
    case = Case(outputs=("mean_logit",), options=options, ignored=())
    problem = build(case, torch.float32, device_of(backend))
    exact = logits_of(problem, options).mean(1)
    found = call(problem, case, backend).mean_logit.double().cpu()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    problem.bias.data[7] = -torch.inf
    assert call(problem, case, backend).mean_logit.isneginf().all()


def test_every_class_that_shares_the_maximum_counts(backend: str) -> None:
    """TRL's `is_top1` takes the first of them alone."""
    hidden, weight = torch.ones(4, 3), torch.zeros(20, 3)
    weight[[4, 9, 17]] = 1.0
    targets = torch.tensor([4, 9, 17, 0])
    tensors = (x.to(device_of(backend)) for x in (hidden, weight, targets))
    stats = token_stats(*tensors, outputs=("logp", "max_logp"), backend=backend)
    assert (stats.logp == stats.max_logp).tolist() == [True, True, True, False]


def test_a_row_of_masked_classes_alone_has_no_likeliest(backend: str) -> None:
    problem = build(Case(ignored=()), torch.float32, device_of(backend))
    problem.bias.data.fill_(-torch.inf)
    stats = call(problem, Case(outputs=("logp", "max_logp")), backend)
    assert stats.logp.isnan().all()
    assert stats.max_logp.isnan().all()


def test_neither_takes_another_look_at_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The normalisers are read once, no sums over classes, no further product."""
    calls: list[str] = []
    for name in torch_kernels.__all__:
        inner = getattr(torch_kernels, name)
        watched = lambda *a, name=name, inner=inner, **k: (calls.append(name), inner(*a, **k))  # noqa: E731
        monkeypatch.setattr(torch_kernels, name, watched)
    problem = build(Case(frozen_head=True), torch.float32)
    for outputs in (("logp",), OUTPUTS):
        call(problem, Case(outputs=outputs), "torch").logp.sum().backward()
    assert calls == ["normalisers", "gradient"] * 2


@pytest.mark.parametrize("frozen", [False, True], ids=["two passes", "one pass"])
def test_detached_outputs_have_values_and_no_gradient(backend: str, frozen: bool) -> None:
    outputs = ("logp", "entropy", "kl")
    found = []
    for detached in ((), ("entropy", "kl")):
        problem = build(Case(frozen_head=frozen), torch.float32, device_of(backend))
        stats = call(problem, Case(outputs=outputs), backend, detached=detached)
        assert stats.entropy.requires_grad is stats.kl.requires_grad is not detached
        stats.logp.sum().backward()
        found.append([*(x.detach() for x in stats if x is not None), problem.hidden.grad])
    for with_gradient, without in zip(*found, strict=True):
        torch.testing.assert_close(without, with_gradient, rtol=1e-5, atol=1e-5)


def test_detached_outputs_take_no_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a frozen head: one direction held, not three."""
    problem = build(Case(frozen_head=True), torch.float32)
    outputs, held = ("logp", "entropy", "log_sum_sq"), []
    forward = operator.forward

    def watched(*args: Any) -> Any:
        made = forward(*args)
        held.append(len(made[2]))
        return made

    monkeypatch.setattr(operator, "forward", watched)
    for detached in (outputs[1:], ()):
        options = {"passes": "one_pass", "detached": detached}
        call(problem, Case(outputs=outputs), "torch", **options)
    assert held == [1, 3]


@pytest.mark.parametrize(
    ("detached", "said"),
    [("entropy", "detached is the string 'entropy'"), (("entropy",), "must be names of outputs")],
)
def test_what_cannot_be_detached(detached: Any, said: str) -> None:
    problem = build(Case())
    with pytest.raises(ValueError, match=said):
        call(problem, Case(outputs=("logp",)), "torch", detached=detached)
