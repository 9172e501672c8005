"""`token_stats` on the torch backend against its definition in fp64, and its invariants."""

import pytest
import torch
from torch import Tensor

from prefkit_kernels import token_stats
from prefkit_kernels.core import chunks
from prefkit_kernels.core.buffers import token_chunks
from prefkit_kernels.token_stats import passes
from tests.kernels.kernel_cases import (
    ALL,
    WITHOUT_GRADIENT,
    Case,
    build,
    call,
    device_of,
    relative_error,
    run,
)

CASES = {
    "everything": Case(),
    "no bias": Case(bias=False),
    "scale, softcap, temperature": Case(
        options={"logit_scale": 0.7, "softcap": 5.0, "temperature": 1.3}
    ),
    "frozen head, all directions": Case(frozen_head=True),
    "frozen head, logp: one pass": Case(frozen_head=True, outputs=("logp",)),
    "frozen head, TDPO: one pass": Case(frozen_head=True, outputs=("logp", "ref_logp", "kl")),
    "frozen hidden": Case(frozen_hidden=True, outputs=("logp", "kl")),
    "other widths": Case(ref_dim=16),
    "shorter reference vocabulary": Case(ref_vocab=280, outputs=("logp", "ref_logp", "kl")),
    "shorter policy vocabulary": Case(ref_vocab=310, outputs=("logp", "ref_logp", "reverse_kl")),
    "one token": Case(tokens=1, ignored=()),
    "tiny budget": Case(options={"memory_budget": 5000}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition_in_fp64(name: str) -> None:
    case = CASES[name]
    truth, found = run(case, "reference"), run(case, "torch")
    assert truth.keys() == found.keys()
    for key in truth:
        assert relative_error(found[key], truth[key]) < 1e-13, key


@pytest.mark.parametrize("output", [name for name in ALL if name not in WITHOUT_GRADIENT])
@pytest.mark.parametrize("frozen", [False, True], ids=["two passes", "one pass"])
def test_gradcheck(output: str, frozen: bool) -> None:
    case = Case(tokens=5, dim=6, ref_dim=6, vocab=17, ref_vocab=17, ignored=(1,))
    problem = build(case)

    def stat(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        stats = token_stats(
            hidden,
            weight,
            problem.targets,
            bias,
            problem.ref_hidden,
            problem.ref_weight,
            problem.ref_bias,
            outputs=(output,),
            softcap=4.0,
        )
        return getattr(stats, output)

    head = [problem.weight, problem.bias]
    inputs = (problem.hidden, *(x.detach().requires_grad_(not frozen) for x in head))
    assert torch.autograd.gradcheck(stat, inputs, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", [False, True], ids=["two passes", "one pass"])
def test_at_least_as_exact_as_plain_torch_in_the_same_dtype(
    dtype: torch.dtype, frozen: bool
) -> None:
    """Bound: the error of the fp32-logits computation of plain torch, doubled, plus an ulp."""
    case = Case(frozen_head=frozen, outputs=("logp", "ref_logp", "kl"), near=0.05)
    problem = build(case, dtype)
    exact = run_on_rounded_inputs(case, dtype)
    plain, ours = run(case, "reference", dtype), run(case, "torch", dtype)
    assert problem.hidden.dtype == dtype
    ulp = torch.finfo(dtype).eps
    for key, truth in exact.items():
        floor = ulp if key.startswith("d_") else 3e-7
        limit = 2 * relative_error(plain[key], truth) + floor
        assert relative_error(ours[key], truth) <= limit, key


def run_on_rounded_inputs(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """The definition in fp64 on the inputs as `dtype` rounds them."""
    rounded = build(case, dtype)
    for name in ("hidden", "weight", "bias", "ref_hidden", "ref_weight", "ref_bias"):
        tensor = getattr(rounded, name)
        exact = tensor.detach().double().requires_grad_(tensor.requires_grad)
        setattr(rounded, name, exact)
    stats = call(rounded, case, "reference")
    found = {name: getattr(stats, name) for name in case.outputs}
    sum((found[name] * c).sum() for name, c in rounded.cotangents.items()).backward()
    for name in ("hidden", "weight", "bias"):
        if (grad := getattr(rounded, name).grad) is not None:
            found[f"d_{name}"] = grad
    return {name: x.detach() for name, x in found.items()}


@pytest.mark.parametrize("budget", [1, 3000, 40_000, 1 << 30])
@pytest.mark.parametrize("frozen", [False, True], ids=["two passes", "one pass"])
def test_memory_budget_changes_nothing_but_rounding(budget: int, frozen: bool) -> None:
    case = Case(frozen_head=frozen, outputs=("logp", "kl"), vocab=500, ref_vocab=500)
    whole, parts = run(case, "torch"), run(case, "torch", memory_budget=budget)
    for key in whole:
        assert relative_error(parts[key], whole[key]) < 1e-13, key


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    case = Case(ignored=())
    problem = build(case)
    batch = call(problem, case, "torch")
    for t in range(case.tokens):
        alone = token_stats(
            problem.hidden[t : t + 1],
            problem.weight,
            problem.targets[t : t + 1],
            problem.bias,
            problem.ref_hidden[t : t + 1],
            problem.ref_weight,
            problem.ref_bias,
            outputs=case.outputs,
        )
        for name in case.outputs:
            torch.testing.assert_close(getattr(alone, name)[0], getattr(batch, name)[t])


def test_ignored_rows_are_zero_and_get_no_gradient() -> None:
    case = Case(ignored=(0, 3, 12))
    found = run(case, "torch")
    for key in (*case.outputs, "d_hidden"):
        assert (found[key][[0, 3, 12]] == 0).all(), key


def test_all_tokens_ignored() -> None:
    for frozen in (False, True):
        case = Case(tokens=4, ignored=(0, 1, 2, 3), frozen_head=frozen, outputs=("logp", "kl"))
        found = run(case, "torch")
        assert all((x == 0).all() for x in found.values())


def test_identical_policy_and_reference_have_kl_exactly_zero() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(near=0.0, outputs=("kl", "reverse_kl"), vocab=5000, ref_vocab=5000)
        stats = call(build(case, dtype), case, "torch")
        assert (stats.kl == 0).all()
        assert (stats.reverse_kl == 0).all()


def test_kl_is_never_negative_and_keeps_its_digits_near_the_reference() -> None:
    """Σ p'·(log p' − log p) in fp32 is off by half a percent at such KLs, and often negative."""
    case = Case(near=3e-4, outputs=("kl", "reverse_kl"), vocab=5000, ref_vocab=5000)
    truth, found = run(case, "reference"), run(case, "torch", torch.float32)
    rounded = run_on_rounded_inputs(case, torch.float32)
    assert float(truth["kl"].max()) < 1e-5
    for key in ("kl", "reverse_kl"):
        assert (found[key] >= 0).all()
        assert relative_error(found[key], rounded[key]) < 1e-3


def test_a_common_offset_of_ten_thousand_costs_no_probability() -> None:
    """All logits of a row shifted by 1e4: what fp32 can still tell apart is normalised exactly."""
    case = Case(bias=False, outputs=("logp", "kl"))
    problem = build(case, torch.float32)
    ones = torch.ones(case.vocab, 1)
    weight = torch.cat([problem.weight.detach(), 100 * ones], 1)
    hidden = torch.cat([problem.hidden.detach(), 100 * torch.ones(case.tokens, 1)], 1)
    logits = (hidden.double() @ weight.double().T).float().double()  # as fp32 can hold them
    expected = logits.log_softmax(1)
    stats = token_stats(hidden, weight, problem.targets, outputs=("logp", "entropy"))
    kept = problem.targets >= 0
    truth = expected.gather(1, problem.targets.clamp(min=0)[:, None]).squeeze(1)
    assert (stats.logp[kept] - truth[kept]).abs().max() < 4e-3  # two ulp of fp32 at 1e4
    assert (stats.entropy >= 0).all()


def test_a_masked_class_has_no_probability_and_no_gradient() -> None:
    for options in ({}, {"softcap": 5.0}):
        case = Case(options=options)
        results = []
        for backend in ("reference", "torch"):
            problem = build(case)
            with torch.no_grad():
                problem.bias[7] = problem.ref_bias[7] = -torch.inf
                problem.targets[problem.targets == 7] = 8
            stats = call(problem, case, backend)
            finite = [name for name in case.outputs if name != "mean_logit"]
            assert all(torch.isfinite(getattr(stats, name)).all() for name in finite)
            assert stats.mean_logit[problem.targets >= 0].isneginf().all()
            sum(getattr(stats, n).sum() for n in problem.cotangents).backward()
            assert (problem.weight.grad[7] == 0).all()
            results.append((stats, problem.hidden.grad))
        for name in case.outputs:
            torch.testing.assert_close(getattr(results[1][0], name), getattr(results[0][0], name))
        torch.testing.assert_close(results[1][1], results[0][1])


def test_nan_and_inf_stay_in_their_own_row() -> None:
    for poison in (torch.nan, torch.inf):
        case = Case(ignored=(), outputs=("logp", "kl", "entropy"))
        problem = build(case, torch.float32)
        with torch.no_grad():
            problem.hidden[4] = poison
        stats = call(problem, case, "torch")
        for name in case.outputs:
            values = getattr(stats, name)
            assert values[4].isnan(), name
            assert torch.isfinite(values[[0, 1, 2, 3, 5, 12]]).all(), name


def test_kl_is_infinite_where_only_the_reference_has_a_class() -> None:
    case = Case(ref_vocab=310, outputs=("kl",))
    stats = call(build(case), case, "torch")
    kept = build(case).targets >= 0
    assert stats.kl[kept].isposinf().all()


def test_the_reference_gets_no_gradient() -> None:
    case = Case()
    problem = build(case)
    problem.ref_hidden.requires_grad_()
    stats = call(problem, case, "torch")
    assert not stats.ref_logp.requires_grad
    stats.kl.sum().backward()
    assert problem.ref_hidden.grad is None


def test_saturated_logits() -> None:
    """Each model sure of another class: KL 300, and expm1 of ±300 must not become inf · 0."""
    for backend in ("torch", "triton"):
        if backend == "triton":
            pytest.importorskip("triton", reason="Triton is not installed")
        at = {"device": device_of(backend)}
        hidden = torch.tensor([[300.0, 0.0], [0.0, 300.0]], requires_grad=True, **at)
        eye, targets = torch.eye(2, requires_grad=True, **at), torch.tensor([0, 1], **at)
        stats = token_stats(
            hidden,
            eye,
            targets,
            ref_hidden=hidden.detach().flip(0),
            ref_weight=eye,
            outputs=("kl", "reverse_kl"),
            backend=backend,
        )
        torch.testing.assert_close(stats.kl, torch.tensor([300.0, 300.0], **at))
        torch.testing.assert_close(stats.reverse_kl, torch.tensor([300.0, 300.0], **at))
        stats.kl.sum().backward()
        torch.testing.assert_close(hidden.grad, torch.tensor([[1.0, -1.0], [-1.0, 1.0]], **at))


def test_what_reaches_a_skipped_row_does_not_matter() -> None:
    """√(−logp) has an infinite slope at the 0 of a skipped row; its gradient is still 0."""
    for frozen in (True, False):
        case = Case(frozen_head=frozen, outputs=("logp",))
        problem = build(case)
        call(problem, case, "torch").logp.neg().sqrt().sum().backward()
        assert torch.isfinite(problem.hidden.grad).all()
        assert (problem.hidden.grad[[2, 5]] == 0).all()


def test_a_scaled_loss_does_not_overflow_fp16_cotangents() -> None:
    """A loss scale of 2¹⁷ is beyond fp16, the gradients of hidden are not."""
    for frozen in (True, False):
        case = Case(frozen_head=frozen, outputs=("logp",), bias=False)
        problem = build(case, torch.float16)
        (call(problem, case, "torch").logp[0] * 2.0**17 * 1e-3).backward()
        assert torch.isfinite(problem.hidden.grad).all()
        assert problem.hidden.grad[0].abs().max() > 10


@pytest.mark.parametrize("frozen", [False, True], ids=["two passes", "one pass"])
def test_low_precision_gradient_products_as_on_a_gpu(
    frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU dz is rounded to the operands' dtype; the same passes, here on the CPU."""
    for module in (passes, chunks):
        monkeypatch.setattr(module, "gradient_dtype", lambda hidden: hidden.dtype)
    case = Case(frozen_head=frozen, outputs=("logp", "ref_logp", "kl"), near=0.05)
    exact = run_on_rounded_inputs(case, torch.bfloat16)
    for backend in ("torch", "triton"):
        found = run(case, backend, torch.bfloat16, device_of(backend))
        for key, truth in exact.items():
            assert relative_error(found[key], truth) < (1e-2 if key.startswith("d_") else 1e-5)


def test_chunks_are_whole_tiles_unless_all_tokens_fit() -> None:
    def sizes(tokens: int, budget: int) -> list[int]:
        return [stop - start for start, stop in token_chunks(tokens, 1, budget, 256)]

    assert sizes(0, 1000) == []
    assert sizes(300, 511) == [300]
    assert sizes(1600, 1673) == [1600]
    assert sizes(1700, 1673) == [1024, 676]
    assert sizes(16_384, 1673) == [1536] * 10 + [1024]
    assert sizes(300, 200) == [150, 150]  # less than a tile: evenly


def test_directions_are_scaled_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_TOKENS_AT_ONCE", 3)
    directions, cotangents = torch.randn(2, 11, 4), torch.randn(2, 11)
    skipped = torch.arange(11) == 5
    found = passes.scale_directions(directions, cotangents, skipped)
    want = (directions * cotangents[:, :, None]).sum(0)
    torch.testing.assert_close(found[~skipped], want[~skipped])
    assert found[5].abs().max() == 0


def test_logits_buffers_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix with a vocabulary side that is ever asked for, forward and backward."""
    budget, biggest = 40_000, 0
    empty = torch.Tensor.new_empty

    def watched(self: Tensor, *size: object, **options: object) -> Tensor:
        nonlocal biggest
        made = empty(self, *size, **options)
        biggest = max(biggest, made.nbytes)
        return made

    case = Case(vocab=2000, ref_vocab=2000, tokens=40, dim=2, ref_dim=2, outputs=("logp", "kl"))
    problem = build(case, torch.float32)
    monkeypatch.setattr(torch.Tensor, "new_empty", watched)
    stats = call(problem, case, "torch", memory_budget=budget)
    (stats.logp + stats.kl).sum().backward()
    assert problem.weight.nbytes < budget  # the weight's gradient is no buffer of logits
    assert 5_000 < biggest <= budget


@pytest.mark.parametrize("backend", ["torch", "triton", "reference"])
def test_autocast_casts_the_operands_and_keeps_fp32_logits(backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    case = Case(outputs=("logp", "kl"), near=0.02, bias=False)
    device = device_of(backend)
    low, high = build(case, torch.bfloat16, device), build(case, torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        auto = call(high, case, backend)
    plain = call(low, case, backend)
    assert auto.logp.dtype == auto.kl.dtype == torch.float32
    torch.testing.assert_close(auto.logp, plain.logp)
    torch.testing.assert_close(auto.kl, plain.kl)
    auto.logp.sum().backward()
    assert high.hidden.grad.dtype == high.weight.grad.dtype == torch.float32
